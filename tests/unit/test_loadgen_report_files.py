"""Results and records as files: whole or not at all, and one clear line when a path cannot be written."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from loadgen.record import Outcome, Record, Run
from loadgen.report.files import write, write_json, write_records
from shared.errors import ConfigError


def two_records() -> list[Record]:
    done = Record(
        index=0, prompt_tokens=7, output_tokens=4, due_s=1.0, sent_s=1.01, event_s=[1.5, 1.6, 1.9],
        event_tokens=[1, 1, 2], done_s=2.0, outcome=Outcome.COMPLETED, status=200, finish="length",
        request_id="r0", usage_prompt_tokens=7, usage_output_tokens=4,
    )  # fmt: skip
    return [
        done,
        Record(index=1, prompt_tokens=3, output_tokens=2, due_s=2.0, outcome=Outcome.REJECTED, error="503\nno"),
    ]


def a_run(records: list[Record]) -> Run:
    return Run(
        target="t", model="m", trace="x", schedule_sha256="0" * 64, scheduled=2, records=records, window_s=(0.0, 3.0)
    )


def test_records_are_one_line_each_with_latencies_beside_what_they_are_made_of(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_records(path, a_run(two_records()))
    first, second = [json.loads(line) for line in path.read_text().splitlines()]
    assert (first["index"], first["outcome"], first["finish"], first["request_id"]) == (0, "completed", "length", "r0")
    assert (first["due_s"], first["sent_s"], first["event_s"], first["event_tokens"]) == (
        1.0, 1.01, [1.5, 1.6, 1.9], [1, 1, 2],
    )  # fmt: skip
    assert first["ttft_s"] == pytest.approx(0.5)
    assert first["tpot_s"] == first["tbt_s"] == pytest.approx(0.4 / 3)
    assert first["e2e_s"] == pytest.approx(1.0)
    assert first["second_token_s"] == pytest.approx(0.1)
    assert first["max_gap_s"] == pytest.approx(0.3)
    assert (first["usage_prompt_tokens"], first["usage_output_tokens"]) == (7, 4)
    assert (second["outcome"], second["error"], second["status"]) == ("rejected", "503\nno", 0)
    assert second["ttft_s"] is second["tbt_s"] is second["e2e_s"] is second["sent_s"] is None


def test_a_record_outside_the_schedule_has_no_latencies(tmp_path: Path) -> None:
    records = two_records()
    records[0].index = 5
    write_records(tmp_path / "r", a_run(records))
    line = json.loads((tmp_path / "r").read_text().splitlines()[0])
    assert (line["index"], line["ttft_s"]) == (5, None)


def test_json_is_readable_and_holds_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": float("nan"), "b": np.float64(0.5), "c": np.arange(2), "d": "ü"})
    assert json.loads(path.read_text()) == {"a": None, "b": 0.5, "c": [0, 1], "d": "ü"}
    assert path.read_text().count("\n") > 4


def test_a_failure_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    write(path, [b"old"])

    def broken() -> Iterator[bytes]:
        yield b"new"
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        write(path, broken())
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("kept", b"old")]


@pytest.mark.parametrize("place", ["missing/result.json", "file/result.json", "."])
def test_a_path_that_cannot_be_written_is_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("a file, no directory")
    with pytest.raises(ConfigError) as caught:
        write_json(tmp_path / place, {})
    message = str(caught.value)
    assert message.startswith(f"cannot write {tmp_path / place}: ") and "\n" not in message


def test_pipes_and_links_are_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", [b"seen"])
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"seen"
    read_end, write_end = os.pipe()
    try:
        write(Path(f"/dev/fd/{write_end}"), [b"through"])
        assert os.read(read_end, 100) == b"through"
    finally:
        os.close(read_end)
        os.close(write_end)
