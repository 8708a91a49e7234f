# SPDX-License-Identifier: Apache-2.0
"""Who uses the processor: waiting for a quiet machine, and telling whether others worked while something was measured."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")
BUSY = 0.15  # share of the machine that may be at work when a measurement starts
OTHERS = 0.05  # cores that others may use while it runs


def busy_seconds() -> tuple[float, float]:
    """Seconds that all cores have been at work, and have been there, since the machine started."""
    fields = [
        int(field) for field in Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]
    ]
    total = sum(fields)
    return (total - fields[3] - fields[4]) * TICK, total * TICK


def session_seconds(leader: int) -> float:
    """CPU seconds of every living process of a session, and of their ended children."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[3]) == leader:
            total += sum(map(int, fields[11:15]))
    return total * TICK


def wait_until_quiet(
    patience: float, *, sleep: Callable[[float], None] = time.sleep, window: float = 0.25
) -> bool:
    """Waits at most about `patience` seconds until hardly anybody works; False if it never got quiet."""
    for _ in range(max(1, round(patience / window))):
        busy, total = busy_seconds()
        sleep(window)
        busy_now, total_now = busy_seconds()
        if busy_now - busy < BUSY * (total_now - total):
            return True
    return False


class Watch:
    """Cores that others used while a `with` block ran: all work less that of this process and of `own()`."""

    def __init__(self, own: Callable[[], float]) -> None:
        self._own = own

    def __enter__(self) -> Watch:
        self._start = self._now()
        return self

    def __exit__(self, *error: object) -> None:
        (busy, own, clock), (busy0, own0, clock0) = self._now(), self._start
        self.seconds = clock - clock0
        self.others = max(0.0, (busy - busy0 - (own - own0)) / self.seconds)

    @property
    def contaminated(self) -> bool:
        """Whether others had more than their share, or more than the clock of one tick on every core can tell."""
        return self.others > max(OTHERS, 3 * TICK / self.seconds)

    def _now(self) -> tuple[float, float, float]:
        return busy_seconds()[0], self._own() + time.process_time(), time.perf_counter()
