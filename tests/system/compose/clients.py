"""Clients that stream through the published port for as long as they are asked to, with the openai SDK."""

import threading
import time
from collections import Counter
from types import TracebackType

import openai

PROMPT = "The history of the lighthouse begins with"


class Clients:
    """Use as `with Clients(url, 8) as clients`: so many streams at a time, one after the other, until it is left.

    ended: streams by how they ended, "done" or the error's name; longest_gap_s: between two events of one stream.
    """

    def __init__(self, url: str, streams: int, *, tokens: int = 96) -> None:
        self.ended: Counter[str] = Counter()
        self.longest_gap_s = 0.0
        self._url, self._tokens = url, tokens
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._stream_for_ever, args=(n,)) for n in range(streams)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def until(self, done: int, within_s: float = 60.0) -> None:
        """Until so many streams more have ended well."""
        target, give_up_at = self.ended["done"] + done, time.monotonic() + within_s
        while self.ended["done"] < target:
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"only {dict(self.ended)} streams ended within {within_s:.0f} s")
            time.sleep(0.1)

    def take(self) -> dict[str, int]:
        """What ended since the last time."""
        with self._lock:
            taken, self.ended = dict(self.ended), Counter()
            self.longest_gap_s = 0.0
        return taken

    def _stream_for_ever(self, number: int) -> None:
        with client(self._url) as sdk:
            while not self._over.is_set():
                outcome = self._one(sdk, f"{PROMPT} {number}")
                with self._lock:
                    self.ended[outcome] += 1
                if outcome != "done":
                    time.sleep(0.2)

    def _one(self, sdk: openai.OpenAI, prompt: str) -> str:
        count, last = 0, time.monotonic()
        try:
            stream = sdk.completions.create(
                model=MODEL, prompt=prompt, max_tokens=self._tokens, temperature=0, stream=True,
                extra_body={"ignore_eos": True}, stream_options={"include_usage": True},
            )  # fmt: skip
            for event in stream:
                now = time.monotonic()
                self.longest_gap_s = max(self.longest_gap_s, now - last)
                last = now
                if event.usage is not None:
                    count = event.usage.completion_tokens
        except openai.OpenAIError as error:
            return f"{type(error).__name__}: {str(error)[:60]}"
        except Exception as error:  # a connection that breaks in mid-stream comes as httpx's own
            return type(error).__name__
        return "done" if count == self._tokens else f"{count} tokens of {self._tokens}"


MODEL = "smollm2-135m-instruct"


def client(url: str) -> openai.OpenAI:
    """Which repeats nothing by itself."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60.0)


def completed(url: str, prompt: str, tokens: int) -> str:
    """Greedy text of one stream."""
    with client(url) as sdk:
        stream = sdk.completions.create(model=MODEL, prompt=prompt, max_tokens=tokens, temperature=0, stream=True)
        return "".join(event.choices[0].text for event in stream if event.choices)
