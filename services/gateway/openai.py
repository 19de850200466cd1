"""The requests of the OpenAI API as vLLM extends it: what is accepted, what is refused by name, what is ignored.

Unknown fields are ignored, as vLLM does. A field that we know and cannot honour is refused unless it has its default:
silently other output is worse than an error.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from services.gateway.errors import rejected
from shared.errors import Rejected
from shared.wire.terms import Sampling

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1000
MAX_PRIORITY = 10

# Fields we know and do not serve, with the values that change nothing.
_UNSERVED: Mapping[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "logprobs": (False,), "top_logprobs": (0,), "prompt_logprobs": (), "echo": (False,),
    "suffix": ("",), "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none",),
    "frequency_penalty": (0,), "presence_penalty": (0,), "repetition_penalty": (1,), "length_penalty": (1,),
    "logit_bias": ({},), "min_p": (0,), "response_format": ({"type": "text"},), "use_beam_search": (False,),
    "structured_outputs": (), "guided_json": (), "guided_regex": (), "guided_choice": (), "guided_grammar": (),
    "bad_words": ([],), "allowed_token_ids": (), "include_stop_str_in_output": (False,), "skip_special_tokens": (True,),
    "truncate_prompt_tokens": (), "continue_final_message": (False,), "chat_template": (), "documents": ([],),
    "audio": (), "prompt_embeds": (),
}  # fmt: skip

Model = TypeVar("Model", bound=BaseModel)
_Probability = Annotated[float, Field(gt=0, le=1)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)
    include_usage: bool = False


class _Generation(BaseModel):
    """What both endpoints share. None means "not given"."""

    model_config = ConfigDict(strict=True, extra="allow")
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: _Probability | None = None
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=128)] | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None  # lower is served earlier

    @field_validator("stop")
    @classmethod
    def _stops_are_usable(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > MAX_STOPS or any(not 1 <= len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
            raise ValueError(f"at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARACTERS} characters")
        return value

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_tokens

    def sampling(self, max_tokens: int, draw_seed: Callable[[], int]) -> Sampling:
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=max(0, self.top_k or 0),
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=draw_seed() if self.seed is None else self.seed,
            max_tokens=max_tokens,
            min_tokens=self.min_tokens or 0,
            ignore_eos=bool(self.ignore_eos),
            stop_token_ids=tuple(self.stop_token_ids or ()),
        )


class CompletionRequest(_Generation):
    prompt: Any

    def one_prompt(self) -> str | list[int]:
        """A text or token ids; a list of one of them counts as that one."""
        prompt = self.prompt
        if isinstance(prompt, list) and prompt and not _is_id(prompt[0]):
            if len(prompt) > 1:
                raise Rejected("several prompts in one request are not supported", param="prompt", code="unsupported")
            prompt = prompt[0]
        if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and all(map(_is_id, prompt))):
            return prompt
        raise Rejected("prompt: give a text or a list of token ids", param="prompt", code="invalid_value")


class ChatMessage(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | list[dict[str, Any]] | None = None

    def plain(self) -> dict[str, Any]:
        """As templates expect it: text parts joined into one text."""
        return {**self.model_dump(), "content": self._text()}

    def _text(self) -> str:
        if self.content is None and self.role != "assistant":
            message = f"messages: a message of role {self.role} needs content"
            raise Rejected(message, param="messages", code="invalid_value")
        if not isinstance(self.content, list):
            return self.content or ""
        if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in self.content):
            message = "messages: only content of type text is supported"
            raise Rejected(message, param="messages", code="unsupported")
        return "\n".join(part["text"] for part in self.content)


class ChatRequest(_Generation):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def plain_messages(self) -> list[dict[str, Any]]:
        return [message.plain() for message in self.messages]

    @property
    def template_options(self) -> dict[str, Any]:
        extra = {k: v for k, v in (self.chat_template_kwargs or {}).items() if k not in ("messages", "tools")}
        return {**extra, "add_generation_prompt": self.add_generation_prompt is not False}


class TokenizeRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None


class DetokenizeRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]


def read(schema: type[Model], body: bytes) -> Model:
    """Raises Rejected naming the field and its limit."""
    try:
        content = json.loads(body.decode("utf-8"), parse_constant=_no_number, parse_float=_finite)
        if b"\\u" in body:
            _refuse_surrogates(content)
    except RecursionError as error:
        raise Rejected("the body is not valid JSON: nested too deeply", code="invalid_json") from error
    except UnicodeError as error:
        raise Rejected("the body is not valid JSON: its text is no Unicode", code="invalid_json") from error
    except ValueError as error:
        raise Rejected(f"the body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(content, dict):
        raise Rejected("the body must be a JSON object", code="invalid_json")
    try:
        request = schema.model_validate(content)
    except ValidationError as error:
        raise rejected(error) from error
    for name, harmless in _UNSERVED.items():
        if content.get(name) is not None and not any(content[name] == value for value in harmless):
            raise Rejected(f"{name} is not supported", param=name, code="unsupported")
    return request


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is out of range")
    return number


def _refuse_surrogates(content: Any) -> None:
    """JSON can spell half of a UTF-16 pair; no text contains one, and it could not be encoded later."""
    json.dumps(content, ensure_ascii=False).encode()


def _is_id(value: Any) -> bool:
    return type(value) is int
