# SPDX-License-Identifier: Apache-2.0
"""Time of a decoding step while another process keeps one core busy, against alone; with --peers that of other engines too.

ratio is against the same engine alone: of the median to the median, and of the 95th percentile to that alone. One busy core of two
leaves half of the machine and what the scheduler gives of the other one, so a ratio of about 2 is what cannot be avoided.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pyspec.models.checkpoint import open_checkpoint
from pyspec.models.fetch import resolve_model

from . import peer_comparison as comparison
from .harness import GateError, Options, Row, make_row
from .peers.load import Watch, session_seconds, wait_until_quiet
from .peers.peer_process import PeerProcess

CONTEXT = 64
STEPS = 32
FEWEST = 4
LONGEST = 4.0  # seconds of steps beside the busy process: engines that wait in turns for a core may need minutes for all
ROUNDS = 3


def rows(options: Options) -> Iterator[Row]:
    """Rows of step times alone and beside a busy process, in turns."""
    checkpoint = open_checkpoint(resolve_model(options.model))
    names = ("pyspec", *comparison.chosen(options))
    tokens = checkpoint.tokenizer.encode(comparison.TEXT.read_text(encoding="utf-8"))
    left_out: list[Row] = []
    with (
        comparison.engines(options, checkpoint, names, 512, 1, tokens, left_out) as loaded,
        busy_process() as busy,
    ):
        yield from left_out
        for engine in loaded:
            request: dict[str, object] = {"do": "decode", "prompts": [tokens[:CONTEXT]]}
            times = step_times(engine.process, busy, request, 1 if options.quick else ROUNDS, options.quick)
            yield from step_rows(engine.backend, *times)


def step_times(
    process: PeerProcess, busy: int, request: dict[str, object], rounds: int, all_count: bool
) -> tuple[list[float], list[float]]:
    """Seconds of steps alone and beside the busy process, of rounds that nobody else disturbed unless all count.

    A first short round says how many steps beside it fit LONGEST.
    """
    times: tuple[list[float], list[float]] = ([], [])
    beside = FEWEST
    for turn in range(-1, rounds):
        for contended in (False, True):
            if not all_count:
                wait_until_quiet(comparison.PATIENCE)
            if contended:
                os.kill(busy, signal.SIGCONT)
            try:
                with Watch(lambda: process.cpu_seconds() + session_seconds(busy)) as watch:
                    seconds = process.ask({**request, "steps": beside if contended else STEPS})["seconds"]
            finally:
                os.kill(busy, signal.SIGSTOP)
            if turn >= 0 and (all_count or not watch.contaminated):
                times[contended].extend(seconds)
        beside = max(FEWEST, min(STEPS, round(LONGEST / statistics.median(seconds))))
    return times


def step_rows(backend: str, alone: Sequence[float], beside: Sequence[float]) -> Iterator[Row]:
    """Medians and 95th percentiles in ms; nothing if every round was disturbed."""
    if not alone or not beside:
        return
    for metric, of in (("step_median", statistics.median), ("step_p95", p95)):
        yield make_row("contention", "alone", backend, metric, 1e3 * of(alone), "ms")
        yield make_row(
            "contention",
            "one busy core",
            backend,
            metric,
            1e3 * of(beside),
            "ms",
            peer="alone",
            ratio=of(beside) / of(alone),
        )


def p95(values: Sequence[float]) -> float:
    """The 95th percentile."""
    return statistics.quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


@contextmanager
def busy_process() -> Iterator[int]:
    """A process on the last core that this one may use, stopped for now: its id. It computes for ever once it is continued."""
    core = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    if core is None:
        raise GateError(
            "contention: processes must be bound to cores, got a system without sched_setaffinity"
        )
    # It ends with the bench, however that ends.
    program = f"import os\nos.sched_setaffinity(0, [{core}])\nwhile os.getppid() == {os.getpid()}: sum(range(100000))"
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    try:
        os.kill(process.pid, signal.SIGSTOP)
        yield process.pid
    finally:
        process.kill()
        process.wait()
