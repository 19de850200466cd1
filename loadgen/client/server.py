"""What a server takes and gives: found out by loadgen.client.probe, then carried to every client process as a value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


class Form(Enum):
    """How a prompt is given: as token ids, or as text made of words that are one token each."""

    IDS = "ids"
    TEXT = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """`symbols`: prompts are drawn from token ids in this range (IDS), or from words with these numbers (TEXT).
    `overhead_tokens`: what the server adds to each prompt (BOS, chat template). `extras`: fields of a request beyond
    OpenAI's that it did not refuse. `remarks`: what it could not do, in sentences."""

    base_url: str
    endpoint: str
    model: str
    form: Form
    symbols: tuple[int, int]
    max_model_len: int | None = None  # longest prompt plus answer in tokens, if it says so
    overhead_tokens: int = 0
    extras: tuple[str, ...] = ()
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return self.base_url + self.endpoint

    @property
    def chat(self) -> bool:
        return self.endpoint.endswith("/chat/completions")
