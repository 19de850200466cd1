"""A model's chat template, rendered in a sandbox to the same text as transformers renders it."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shared.errors import ConfigError, Rejected


class ChatTemplate:
    @classmethod
    def of(cls, directory: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str]) -> "ChatTemplate | None":
        """The template file wins over the one in tokenizer_config.json; among named ones, "default" is used."""
        file = directory / "chat_template.jinja"
        source = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
        if isinstance(source, list):
            source = {entry["name"]: entry["template"] for entry in source}.get("default")
        return None if source is None else cls(source, special_tokens)

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ConfigError(f"the chat template is malformed: {error}") from error
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, **variables: Any) -> str:
        """Keys whose value is None are left out, as templates expect. Raises Rejected if the template refuses."""
        given = [{key: value for key, value in message.items() if value is not None} for message in messages]
        scope = {**self._special_tokens, "tools": None, "documents": None, **variables}
        try:
            return self._template.render({**scope, "messages": given, "add_generation_prompt": add_generation_prompt})
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            # A template is code of the model's author: whatever it stumbles over is about these messages.
            raise Rejected(f"the chat template refused the messages: {error}", param="messages") from error


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks text for training; rendering passes over the mark."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML, which prompts must not contain."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
