"""Options of the small commands; those of `up` are in the catalogue of shared.runtime.config."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from shared.errors import ConfigError


class Options(argparse.ArgumentParser):
    """An argument parser whose complaint is one line, raised as ConfigError."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"splitmesh {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        return self.parse_args(arguments)
