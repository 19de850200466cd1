"""Options of the small commands; those of the services are in the catalogue of shared.runtime.config."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from shared.errors import ConfigError


class Options(argparse.ArgumentParser):
    """An argument parser whose complaint is one line, raised as ConfigError."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        return self.parse_args(arguments)


def typed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """For argparse, which hides the words of a ValueError."""

    def parse_argument(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error

    return parse_argument
