# SPDX-License-Identifier: Apache-2.0
"""Timing, the machine's measured peaks, and the rows that every bench gives.

A bench is a file `bench_<name>.py` with `rows(options: Options) -> Iterable[Row]`. It checks its results before it times
them and raises GateError when they are wrong (also after its rows, which are then printed and saved first).
"""

from __future__ import annotations

import csv
import datetime
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

import torch

from pyspec import machine


class GateError(RuntimeError):
    """The results that a bench checked are wrong: its times mean nothing."""


class Row(TypedDict):
    """One figure. peak_pct: percentage of the machine's measured peak; ratio: value over the peer's, measured in the same run."""

    bench: str
    case: str
    backend: str
    metric: str
    value: float
    unit: str
    peak_pct: float | None
    peer: str | None
    ratio: float | None


@dataclass(frozen=True)
class Options:
    """What the command line asks of a bench; each uses what concerns it."""

    quick: bool = False
    prompts: int = 200
    threads: int | None = None
    model: str = "smollm2-135m-instruct"
    batch: tuple[int, ...] = (1, 8)
    mode: tuple[str, ...] = ("tree", "random", "sampled")
    max_tokens: int = 128
    skip: int = 0
    seconds: float | None = None
    all: bool = False
    only: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    install: tuple[str, ...] = ()

    def wants(self, case: str) -> bool:
        """Whether a case's name matches one of the patterns of `only`; without patterns, all do."""
        return not self.only or any(fnmatchcase(case, pattern) for pattern in self.only)


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: percentiles over rounds."""

    p20: float
    p50: float
    p80: float
    rounds: int


@dataclass(frozen=True)
class Peaks:
    """What this machine reaches with the threads in use: GB/s of reading and copying memory, GFLOP/s of f32 matmul."""

    read_gbps: float
    copy_gbps: float
    f32_gflops: float

    def percent(self, bytes: float, flops: float, seconds: float) -> float:
        """How near a call is to the nearer of its two floors: 100 is the floor; above it, the data came from a cache."""
        floor = max(bytes / (self.read_gbps * 1e9), flops / (self.f32_gflops * 1e9))
        return 100 * floor / seconds


def make_row(
    bench: str, case: str, backend: str, metric: str, value: float, unit: str, *,
    peak_pct: float | None = None, peer: str | None = None, ratio: float | None = None,
) -> Row:  # fmt: skip
    """A row, with its figures rounded to six digits."""
    digits = lambda x: None if x is None else float(f"{x:.6g}")
    return Row(
        bench=bench, case=case, backend=backend, metric=metric, value=float(f"{value:.6g}"), unit=unit,
        peak_pct=digits(peak_pct), peer=peer, ratio=digits(ratio),
    )  # fmt: skip


def measure(
    candidates: Mapping[str, Callable[[], object]], *, seconds: float = 0.5, min_rounds: int = 5
) -> dict[str, Timing]:
    """Time candidates in turns (A B C A B C ...), so that drift and co-tenants hit all alike.

    A turn repeats its candidate for at least 1 ms; rounds go on for `seconds` per candidate and at least `min_rounds`.
    """
    inner = {}
    for name, call in candidates.items():
        call()
        begin = time.perf_counter()
        call()
        inner[name] = max(1, round(1e-3 / max(time.perf_counter() - begin, 1e-9)))
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + seconds * len(candidates)
    rounds = 0
    while rounds < min_rounds or time.perf_counter() < end:
        for name, call in candidates.items():
            begin = time.perf_counter()
            for _ in range(inner[name]):
                call()
            samples[name].append((time.perf_counter() - begin) / inner[name])
        rounds += 1
    return {name: Timing(*spread(values), len(values)) for name, values in samples.items()}


def spread(values: list[float]) -> tuple[float, float, float]:
    """The 20th, 50th and 80th percentile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return cuts[0], statistics.median(values), cuts[3]


@lru_cache(maxsize=1)
def peaks() -> Peaks:
    """Measured once a run: sum and copy of 256 MB (far over any cache that is shared fairly), f32 matmul of 1024^3."""
    big = torch.ones(64 << 20)
    other = torch.empty_like(big)
    square = torch.rand(1024, 1024)
    times = measure({
        "read": lambda: big.sum(), "copy": lambda: other.copy_(big), "matmul": lambda: square @ square,
    }, seconds=0.7)  # fmt: skip
    size = big.numel() * 4
    return Peaks(
        size / times["read"].p20 / 1e9,
        2 * size / times["copy"].p20 / 1e9,
        2 * 1024**3 / times["matmul"].p20 / 1e9,
    )


def write_json(path: Path, rows: Iterable[Row]) -> None:
    """A list of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(rows), indent=1) + "\n", encoding="utf-8")


def append_csv(path: Path, rows: Iterable[Row], threads: int) -> None:
    """Rows with the machine, its load, the commit and the date, after those that the file has."""
    where = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.cpu_model(),
        "cores": machine.cores(),
        "threads": threads,
        "load": f"{os.getloadavg()[0]:.2f}",
        "commit": commit(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*where, *Row.__annotations__], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows({**where, **row} for row in rows)


@lru_cache(maxsize=1)  # the code that runs is that of the start
def commit() -> str:
    """The commit of the source tree that runs, with `+` if files differ from it; nothing outside a repository."""
    root = Path(__file__).parent.parent
    try:
        head = _git(root, "rev-parse", "--short", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def print_table(rows: Iterable[Row]) -> None:
    """The rows as a table on standard output."""
    from rich.console import Console
    from rich.table import Table

    table = Table("case", "backend", "metric")
    for name in ("value", "unit", "% of peak", "ratio"):
        table.add_column(name, justify="left" if name == "unit" else "right")
    table.add_column("peer")
    for row in rows:
        peak, ratio = row["peak_pct"], row["ratio"]
        table.add_row(
            row["case"], row["backend"], row["metric"], f"{row['value']:,.6g}", row["unit"],
            "" if peak is None else f"{peak:.0f}", "" if ratio is None else f"{ratio:.2f}", row["peer"] or "",
        )  # fmt: skip
    Console(width=None if os.isatty(1) else 140).print(table)
