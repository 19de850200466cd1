"""`splitmesh replay`: take the decisions in journals again, and say where they come out differently.

Exit code 1 if any does: the policies are not those that wrote the journal, or the file is not as it was written.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from shared.errors import BadFrame, ConfigError
from shared.policy.replay import Difference, Opening, Record, Replay
from shared.runtime.journal import read
from shared.runtime.options import Options

SHOWN = 5  # differences of a journal


def replay(arguments: Sequence[str], console: Console) -> int:
    options = Options("splitmesh replay", "Take the decisions in journals (see `splitmesh up --journal`) again.")
    options.add_argument("journal", nargs="+", type=Path, help="DIR/NAME.journal of a router or pool manager")
    given = options.read(arguments)
    differ = 0
    for path in given.journal:
        try:
            differ += _replay(path, console)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        except BadFrame as error:
            raise ConfigError(f"{path}: no journal of this version of splitmesh: {error}") from error
    return int(differ > 0)


def _replay(path: Path, console: Console) -> int:
    """How many decisions differ."""
    entries = read(path)
    opening = next(entries, None)
    if not isinstance(opening, Opening):
        raise BadFrame("it does not begin with an Opening")
    taken = Replay(opening)
    shown: list[Difference] = []
    differ = unfinished_bytes = 0
    for entry in entries:
        match entry:
            case Record():
                if (difference := taken.take(entry)) is not None:
                    differ += 1
                    shown += [difference] if differ <= SHOWN else []
            case int():
                unfinished_bytes = entry
            case Opening():
                raise BadFrame(f"a second Opening after {taken.records} records")
    found = f"{differ} differ" if differ else "no difference"
    _say(console, f"{path.name}: {taken.records} records, {taken.decisions} decisions taken again, {found}")
    if unfinished_bytes:
        _say(console, f"  it ends within a record, after {unfinished_bytes} bytes: its process was killed")
    for difference in shown:
        _show(console, difference)
    return differ


def _show(console: Console, difference: Difference) -> None:
    record = difference.record
    _say(console, f"  record {difference.number}, {record.call} at {record.at:.3f} s")
    _say(console, f"    recorded: {record.answer or 'nothing'}")
    _say(console, f"    again:    {difference.recomputed or 'nothing'}")


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
