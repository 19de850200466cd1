"""What a long fetch tells the start-up view."""

from typing import Protocol


class Progress(Protocol):
    def __call__(self, stage: str, done: int, total: int) -> None:
        """`stage` is a short text for people; `done` of `total` units are through, total 0 means unknown."""
        ...


def silent(stage: str, done: int, total: int) -> None:
    """Tell nobody."""
