"""`python -m loadgen.sim.fitting CSV`: Splitwise's table of measurements in, figures/speeds.json out.

The table (Splitwise's artifact, data/perf_model.csv) has, for each model, hardware and tensor parallelism, prompts of
128 to 8,192 tokens alone, up to 64 prompts of 512 tokens together, and answers of up to 8,192 tokens, five times each;
the time of the prompt phase and the mean time of a token in ms, and power as a share of the GPUs' limit (0: not taken).

Fits are least squares of the relative error over the medians of each point, coefficients not negative:

    prefill  a + b * tokens + c * Σ (end² - start²), of steps up to KNEE_TOKENS. So many tokens in a step take the same
             time whether they are one prompt or many, and above the knee they suddenly take up to 2.8 times as long for
             twice the tokens: that is no attention, so c is not fitted but counted, as the share of attention in the
             floating-point operations of the model at the speed it reaches at the knee.
    decode   a + b * context + c * batch, the context of a point being its mean while it decodes. Long answers ended
             early; how many tokens there were follows from the total time.
"""

import csv
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np

from loadgen.measure.latencies import FloatArray
from loadgen.report.files import write
from loadgen.sim.profiles import hardware
from loadgen.sim.speeds import MeasuredSpeed, PublishedSpeed
from shared.errors import ConfigError
from shared.runtime.options import Options
from shared.wire.costs import Coefficients, Costs

K = TypeVar("K")

KNEE_TOKENS = 2048
DIGITS = 6  # significant
SHIPPED = Path(__file__).with_name("figures") / "speeds.json"
SOURCE = "data/perf_model.csv of the artifact of Patel et al., Splitwise, ISCA 2024; medians and fits of it"
COMPUTED = {"h100-80gb-pcap": "not measured: 1.3 times the prompt times of h100-80gb, its times per token unchanged"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    prompt_tokens: int
    batch: int
    answer_tokens: int
    prompt_ms: float
    token_ms: float
    e2e_ms: float
    peak_power: float
    mean_power: float

    @property
    def tokens(self) -> int:
        return self.prompt_tokens * self.batch

    @property
    def squares(self) -> int:
        return self.prompt_tokens * self.prompt_tokens * self.batch

    @property
    def context(self) -> float:
        generated = min(self.answer_tokens, 1 + (self.e2e_ms - self.prompt_ms) / self.token_ms)
        return self.batch * (self.prompt_tokens + generated / 2)


def refit(table: Path) -> dict[str, Any]:
    """What figures/speeds.json holds. Raises ConfigError for a file that is not that table."""
    groups = _read(table)
    speeds = []
    for model, machine in itertools.product(hardware()["models"], hardware()["machines"].values()):
        rows = groups.get((model, machine["hardware"], hardware()["gpus_per_machine"]), [])
        tokens = {row.tokens for row in rows}
        if KNEE_TOKENS not in tokens or max(tokens) == KNEE_TOKENS:
            where = f"{model} on {machine['hardware']}"
            raise ConfigError(f"{table}: no rows of {where} at {KNEE_TOKENS} tokens and beyond", param="csv")
        speeds.append(_speed(model, machine["hardware"], rows))
    return {"source": SOURCE, "knee_tokens": KNEE_TOKENS, "speeds": speeds}


def _read(table: Path) -> dict[tuple[str, str, int], list[Row]]:
    groups = defaultdict(list)
    try:
        with table.open(newline="") as file:
            for line in csv.DictReader(file):
                key = line["model"], line["hardware"], int(line["tensor_parallel"])
                groups[key].append(
                    Row(
                        prompt_tokens=int(line["prompt_size"]),
                        batch=int(line["batch_size"]),
                        answer_tokens=int(line["token_size"]),
                        prompt_ms=float(line["prompt_time"]),
                        token_ms=float(line["token_time"]),
                        e2e_ms=float(line["e2e_time"]),
                        peak_power=float(line["peak_power"]),
                        mean_power=float(line["average_power"]),
                    )
                )
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise ConfigError(f"{table} is not the table of measurements: {error}", param="csv") from error
    return groups


def _speed(model: str, name: str, rows: list[Row]) -> dict[str, Any]:
    by_tokens = _medians(rows, lambda row: row.tokens, lambda row: row.prompt_ms)
    token_ms = _medians(rows, lambda row: row.tokens, lambda row: row.token_ms)
    squares = _medians(rows, lambda row: row.tokens, lambda row: row.squares)
    tokens = sorted(by_tokens)
    knots = {
        "tokens": tokens,
        "squares": [round(squares[t]) for t in tokens],
        "prompt_ms": [_rounded(by_tokens[t]) for t in tokens],
        "token_ms": [_rounded(token_ms[t]) for t in tokens],
    }
    costs = Costs(
        prefill_ms=_rounded_all(_prefill(model, rows, by_tokens[KNEE_TOKENS])),
        decode_ms=_rounded_all(_decode(rows)),
    )
    return {
        "model": model,
        "hardware": name,
        "tensor_parallel": hardware()["gpus_per_machine"],
        **({"note": COMPUTED[name]} if name in COMPUTED else {}),
        "rows": len(rows),
        "prefill_ms": costs.prefill_ms,
        "decode_ms": costs.decode_ms,
        "errors": _errors(rows, costs, knots),
        "power_share": _power_share(rows),
        "knots": knots,
    }


def _prefill(model: str, rows: list[Row], knee_ms: float) -> Coefficients:
    facts = hardware()["models"][model]
    per_square = 2 * facts["hidden"] * facts["layers"]  # operations: 4 a pair of tokens, and half as many pairs
    c = per_square * knee_ms / (2 * facts["parameters"] * KNEE_TOKENS + per_square * KNEE_TOKENS**2)
    below = [row for row in rows if row.tokens <= KNEE_TOKENS]
    points = _medians(below, lambda row: (row.tokens, row.squares), lambda row: row.prompt_ms)
    measured = np.array(list(points.values()))
    features = np.array([(1.0, tokens) for tokens, _ in points])
    left = measured - c * np.array([squares for _, squares in points])
    a, b = _not_negative(features / measured[:, None], left / measured)
    return a, b, c


def _decode(rows: list[Row]) -> Coefficients:
    def of_point(value: Callable[[Row], float]) -> list[float]:
        return list(_medians(rows, lambda row: (row.prompt_tokens, row.batch, row.answer_tokens), value).values())

    measured = np.array(of_point(lambda row: row.token_ms))
    features = np.array([of_point(lambda row: 1.0), of_point(lambda row: row.context), of_point(lambda row: row.batch)])
    return _not_negative(features.T / measured[:, None], np.ones(len(measured)))


def _not_negative(features: FloatArray, wanted: FloatArray) -> Coefficients:
    """Least squares under coefficients >= 0: the best of the unconstrained solutions over each set of columns."""
    best, best_error = np.zeros(features.shape[1]), float(wanted @ wanted)
    for size in range(1, features.shape[1] + 1):
        for columns in itertools.combinations(range(features.shape[1]), size):
            found = np.linalg.lstsq(features[:, columns], wanted, rcond=None)[0]
            off = features[:, columns] @ found - wanted
            if (found >= 0).all() and off @ off < best_error:
                best, best_error = np.zeros(features.shape[1]), float(off @ off)
                best[list(columns)] = found
    return tuple(best.tolist())


def _errors(rows: list[Row], costs: Costs, knots: dict[str, Any]) -> dict[str, dict[str, float]]:
    """|said / measured - 1| over all rows, repetitions singly."""
    curve = MeasuredSpeed(knots["tokens"], knots["squares"], knots["prompt_ms"], costs)
    published = PublishedSpeed(knots["tokens"], knots["prompt_ms"], knots["token_ms"])

    def error(
        rows: Iterable[Row], said_s: Callable[[Row], float], measured: Callable[[Row], float]
    ) -> dict[str, float]:
        off = [abs(said_s(row) * 1000 / measured(row) - 1) for row in rows]
        return {"mean": round(sum(off) / len(off), 4), "max": round(max(off), 4)}

    def fitted(row: Row) -> float:
        return costs.step_s(row.tokens, row.squares, 0, 0)

    def prompt_ms(row: Row) -> float:
        return row.prompt_ms

    def token_ms(row: Row) -> float:
        return row.token_ms

    return {
        "prefill_to_knee": error((r for r in rows if r.tokens <= KNEE_TOKENS), fitted, prompt_ms),
        "prefill_beyond": error((r for r in rows if r.tokens > KNEE_TOKENS), fitted, prompt_ms),
        "prefill_curve": error(rows, lambda r: curve.step_s(r.tokens, r.squares, 0, 0), prompt_ms),
        "decode": error(rows, lambda r: costs.decode_s(round(r.context), r.batch), token_ms),
        "decode_published": error(rows, lambda r: published.decode_s(0, r.batch), token_ms),
    }


def _power_share(rows: list[Row]) -> dict[str, float] | None:
    """Of the GPUs' limit. Prompts: the peak, with a full batch. Decodes: the mean over runs that mostly decode."""
    full = [row.peak_power for row in rows if row.peak_power > 0 and row.tokens == KNEE_TOKENS]
    mean = [row.mean_power for row in rows if row.mean_power > 0]
    return {"prompt": _rounded(median(full)), "token": _rounded(median(mean))} if full and mean else None


def _medians(rows: Iterable[Row], key: Callable[[Row], K], value: Callable[[Row], float]) -> dict[K, float]:
    groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(value(row))
    return {found: median(values) for found, values in groups.items()}


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _rounded_all(values: Sequence[float]) -> Coefficients:
    return tuple(_rounded(value) for value in values)


def main() -> None:
    options = Options("python -m loadgen.sim.fitting", "Fit the machines of the papers to the table of measurements.")
    options.add_argument("csv", type=Path, help="data/perf_model.csv of Splitwise's artifact")
    options.add_argument("--out", type=Path, default=SHIPPED, help="the file to write")
    given = options.parse_args()
    found = refit(given.csv)
    lines = ",\n".join(json.dumps(speed) for speed in found.pop("speeds"))
    head = json.dumps(found)[:-1]
    write(given.out, [f'{head}, "speeds": [\n{lines}\n]}}\n'.encode()])


if __name__ == "__main__":
    main()
