"""The answers of the two generating endpoints: whole, or as one event per step."""

import json
from dataclasses import dataclass
from typing import Any

DONE = b"data: [DONE]\n\n"


def event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


@dataclass(slots=True, kw_only=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int = 0

    def as_json(self) -> dict[str, int]:
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens, "total_tokens": total,
        }  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Answer:
    """Head of one answer. `created` is in seconds since 1970."""

    answer_id: str
    created: int
    model: str
    chat: bool
    include_usage: bool
    prompt_token_ids: list[int] | None  # given if token ids were asked for (vLLM's `return_token_ids`)

    def whole(self, text: str, token_ids: list[int], finish: str, usage: Usage) -> dict[str, Any]:
        if self.chat:
            choice = {"index": 0, "message": {"role": "assistant", "content": text}}
        else:
            choice = {"index": 0, "text": text}
        choice |= {"logprobs": None, "finish_reason": finish}
        if self.prompt_token_ids is not None:
            choice |= {"prompt_token_ids": self.prompt_token_ids, "token_ids": token_ids}
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": [choice], "usage": usage.as_json()}

    def opening(self) -> bytes | None:
        """A chat begins with an event that names the role."""
        return self._piece({"delta": {"role": "assistant", "content": ""}}, [], None) if self.chat else None

    def piece(self, text: str, token_ids: list[int], finish: str | None) -> bytes:
        if self.chat:
            return self._piece({"delta": {"content": text} if text or not finish else {}}, token_ids, finish)
        return self._piece({"text": text}, token_ids, finish)

    def closing(self, usage: Usage) -> bytes | None:
        """An event without choices, if usage was asked for."""
        return (
            event({**self._head(self._kind), "choices": [], "usage": usage.as_json()}) if self.include_usage else None
        )

    def _piece(self, content: dict[str, Any], token_ids: list[int], finish: str | None) -> bytes:
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish}
        if self.prompt_token_ids is not None:
            choice["token_ids"] = token_ids
        usage = {"usage": None} if self.include_usage else {}
        return event({**self._head(self._kind), "choices": [choice], **usage})

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.answer_id, "object": kind, "created": self.created, "model": self.model}
