# SPDX-License-Identifier: Apache-2.0
"""The bench harness: timing in turns, rows, files, counting of differences, and the prompts' archives."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bench import __main__ as runner
from bench import bench_equality, harness, prompts
from bench.harness import GateError, Options, make_row
from pyspec.engine import SamplingParams


def test_measure_takes_turns() -> None:
    calls: list[str] = []
    times = harness.measure(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, seconds=0, min_rounds=3
    )
    assert times["a"].rounds == times["b"].rounds == 3
    assert times["a"].p20 <= times["a"].p50 <= times["a"].p80
    switches = sum(x != y for x, y in zip(calls, calls[1:], strict=False))
    assert switches >= 2 * 3 - 1


def test_percent_of_peak_takes_the_nearer_floor() -> None:
    peaks = harness.Peaks(read_gbps=10, copy_gbps=10, f32_gflops=100)
    assert peaks.percent(bytes=10**9, flops=10**9, seconds=0.2) == pytest.approx(50)
    assert peaks.percent(bytes=0, flops=10**10, seconds=0.2) == pytest.approx(50)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception | None], None]:
    """Puts a bench of one row in place of `equality`, which may end with an error."""

    def plant(error: Exception | None) -> None:
        def rows(options: Options):
            yield make_row(
                "equality", "case", "cpu", "differing_tokens", 1234567.0, "tokens", peer="plain", ratio=0.5
            )
            if error:
                raise error

        monkeypatch.setattr(bench_equality, "rows", rows)

    return plant


def test_rows_are_printed_and_saved(
    planted: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted(None)
    json_file, csv_file = tmp_path / "deep" / "rows.json", tmp_path / "rows.csv"
    for _ in range(2):
        assert runner.run(["equality", "--json", str(json_file), "--csv", str(csv_file)]) == 0
    (row,) = json.loads(json_file.read_text())
    assert list(row) == ["bench", "case", "backend", "metric", "value", "unit", "peak_pct", "peer", "ratio"]
    assert row["value"] == 1234570.0
    assert row["peak_pct"] is None
    records = list(csv.DictReader(csv_file.open()))
    assert len(records) == 2
    assert records[0]["machine"]
    assert int(records[0]["cores"]) >= 1
    assert "differing_tokens" in capsys.readouterr().out


def test_a_failed_gate_prints_its_rows_and_fails(
    planted: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    planted(GateError("equality: every answer must equal"))
    assert runner.run(["equality"]) == 1
    captured = capsys.readouterr()
    assert "differing_tokens" in captured.out
    assert captured.err == "error: equality: every answer must equal\n"


def test_a_csv_file_has_the_rows_of_a_bench_that_was_broken_off(planted: Callable, tmp_path: Path) -> None:
    planted(MemoryError("no more"))
    csv_file = tmp_path / "rows.csv"
    with pytest.raises(MemoryError):
        runner.run(["equality", "--csv", str(csv_file)])
    (record,) = csv.DictReader(csv_file.open())
    assert record["metric"] == "differing_tokens"


def test_cases_are_chosen_by_patterns() -> None:
    cases = ["suffix/T0.0/humaneval", "suffix+eagle3/T0.0/humaneval", "ngram/T1.0/gsm8k"]
    assert all(map(Options().wants, cases))
    assert [case for case in cases if Options(only=("*eagle3*", "*/gsm8k")).wants(case)] == cases[1:]
    assert [case for case in cases if Options(only=("suffix/*",)).wants(case)] == cases[:1]


def test_every_bench_file_is_found() -> None:
    files = {path.stem.removeprefix("bench_") for path in Path(runner.__file__).parent.glob("bench_*.py")}
    assert set(runner.names()) == files >= {"equality", "e2e"}


@pytest.mark.parametrize(("batch", "message"), [("0", "positive"), ("a", "positive"), ("", "positive")])
def test_bad_batches_are_refused(batch: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.run(["equality", "--batch", batch]) == 2
    assert message in capsys.readouterr().err


def test_differences_are_counted() -> None:
    assert bench_equality.count_differing([1, 2, 3], [1, 2, 3]) == 0
    assert bench_equality.count_differing([1, 2, 3], [1, 5]) == 2
    assert bench_equality.count_differing_bits([-0.5, -1.0], [-0.5, -1.0]) == 0
    assert bench_equality.count_differing_bits([0.0], [-0.0]) == 1
    assert bench_equality.count_differing_bits([-0.5], [-0.5, -1.0]) == 32


def test_ways_cover_modes_and_batches() -> None:
    cases = [way.case for way in bench_equality.ways(Options())]
    assert cases == [
        "greedy/plain/batch8", "T0.7/plain/batch8", "T1.0/plain/batch8",
        "greedy/suffix/batch1", "greedy/suffix/batch8", "greedy/random/batch1", "greedy/random/batch8",
        "T0.7/suffix/batch1", "T0.7/suffix/batch8", "T1.0/suffix/batch1", "T1.0/suffix/batch8",
    ]  # fmt: skip
    assert [way.case for way in bench_equality.ways(Options(mode=("tree",), batch=(1,)))] == [
        "greedy/suffix/batch1"
    ]


def test_turns_have_every_parameter_at_every_temperature() -> None:
    turns = bench_equality.turns(SamplingParams(max_tokens=32))
    for name in (
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "repetition_penalty",
        "logit_bias",
        "banned_tokens",
        "min_tokens",
    ):
        changed = [p for p in turns if getattr(p, name) != getattr(SamplingParams(), name)]
        assert {p.temperature for p in changed} == {0.0, 0.3, 0.7, 1.0}, name


def archive(folder: Path, member: str, content: bytes) -> Path:
    path = folder / "some.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(member, content)
    return path


def test_prompts_are_read_from_a_wheel(tmp_path: Path) -> None:
    source = prompts.Source("set", "set==1", "0", "data/q.jsonl.gz", True, lambda record: record["q"])
    lines = b'{"q": "one"}\n\n{"q": "two"}\n'
    path = archive(tmp_path, source.member, gzip.compress(lines))
    assert [p.text for p in prompts.read(source, path)] == ["one", "two"]
    plain = replace(source, member="data/q.jsonl")
    assert len(prompts.read(plain, archive(tmp_path, plain.member, lines))) == 2


def test_long_prompts_are_left_out(tmp_path: Path) -> None:
    source = prompts.Source("set", "set==1", "0", "q.jsonl", True, lambda record: record["q"])
    texts = ["a" * prompts.MAX_CHARACTERS, "b" * (prompts.MAX_CHARACTERS + 1), "c"]
    lines = "\n".join(json.dumps({"q": text}) for text in texts).encode()
    assert [p.text[0] for p in prompts.read(source, archive(tmp_path, source.member, lines))] == ["a", "c"]


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    source = prompts.Source("set", "set==1", "0", "q.jsonl.gz", True, lambda record: record["q"])
    path = archive(tmp_path, source.member, gzip.compress(b" " * (prompts.MAX_BYTES + 1)))
    with pytest.raises(ValueError, match="must have at most"):
        prompts.read(source, path)


def test_a_cached_wheel_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSPEC_CACHE", str(tmp_path))
    good = hashlib.sha256(b"content").hexdigest()
    source = prompts.Source("set", "set==1", good, "q", True, lambda record: record)
    path = tmp_path / "prompts" / f"set-{good[:12]}.whl"
    path.parent.mkdir()
    path.write_bytes(b"content")
    assert prompts.wheel(source) == path
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match="must have sha256"):
        prompts.wheel(source)
    assert not path.exists()


def test_sources_are_mixed_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "wheel", lambda source: Path(source.name))
    sizes = {"humaneval": 3, "mtbench": 1, "gsm8k": 2}
    sources = tuple(source for source in prompts.SOURCES if source.name in sizes)
    monkeypatch.setattr(prompts, "SOURCES", sources)
    monkeypatch.setattr(
        prompts, "read", lambda source, path: [prompts.Prompt(source.name, "x", True)] * sizes[source.name]
    )
    names = [prompt.source for prompt in prompts.load(6)]
    assert names == ["humaneval", "mtbench", "gsm8k", "humaneval", "gsm8k", "humaneval"]
    with pytest.raises(ValueError, match="count must be at most 6, got 7"):
        prompts.load(7)
