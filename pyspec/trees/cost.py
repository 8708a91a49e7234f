# SPDX-License-Identifier: Apache-2.0
"""What steps cost: seconds by nodes, context and requests, measured once per machine and model."""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyspec import env

if TYPE_CHECKING:
    pass

FORMAT = 2


@dataclass(frozen=True)
class CostTable:
    """Seconds of one step by number of nodes, context length and requests.

    nodes      ascending node counts, the first is 1
    contexts   ascending committed lengths L, at least one
    seconds    seconds[c][n] for contexts[c] and nodes[n] of one request, finite and positive
    batches    ascending numbers of requests, the first is 1
    surcharge  surcharge[c][b] >= 0: what as many nodes cost more if batches[b] requests have them, finite; 0 for one

    Times between the points are interpolated linearly, made non-decreasing in the nodes and requests (a measurement
    that says otherwise is noise), held constant outside the contexts, and extrapolated with the last slope beyond
    the nodes and requests. The sum seconds + surcharge is a model: weights are read once for all nodes, KV once for each request.
    """

    nodes: tuple[int, ...]
    contexts: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    batches: tuple[int, ...] = (1,)
    surcharge: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.surcharge:
            object.__setattr__(self, "surcharge", tuple((0.0,) * len(self.batches) for _ in self.contexts))
        if not self.nodes or self.nodes[0] != 1 or list(self.nodes) != sorted(set(self.nodes)):
            raise ValueError(f"CostTable: nodes must ascend from 1, got {list(self.nodes)}")
        contexts = list(self.contexts)
        if not contexts or contexts[0] < 0 or contexts != sorted(set(contexts)):
            raise ValueError(f"CostTable: contexts must ascend from >= 0, got {contexts}")
        if len(self.seconds) != len(contexts) or any(len(row) != len(self.nodes) for row in self.seconds):
            shape = [len(contexts), len(self.nodes)]
            raise ValueError(f"CostTable: seconds must be {shape}, got {[len(row) for row in self.seconds]}")
        for value in (value for row in self.seconds for value in row):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"CostTable: seconds must be finite and positive, got {value}")
        if not self.batches or self.batches[0] != 1 or list(self.batches) != sorted(set(self.batches)):
            raise ValueError(f"CostTable: batches must ascend from 1, got {list(self.batches)}")
        if [len(row) for row in self.surcharge] != [len(self.batches)] * len(contexts):
            shape = [len(contexts), len(self.batches)]
            raise ValueError(
                f"CostTable: surcharge must be {shape}, got {[len(row) for row in self.surcharge]}"
            )
        for value in (value for row in self.surcharge for value in row):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"CostTable: surcharge must be finite and >= 0, got {value}")

    @classmethod
    def measure(
        cls,
        step: Callable[[int, int, int], object],
        nodes: Sequence[int],
        contexts: Sequence[int] = (0,),
        batches: Sequence[int] = (1,),
        repeats: int = 5,
    ) -> CostTable:
        """Times step(nodes, context, batch): the fastest of `repeats` rounds after one that is not timed.

        One request is measured at every number of nodes, more requests with one node each. A round visits every point, so
        that a slow moment of the machine does not fall on one point alone; other work on it only ever adds time.
        """
        if repeats < 1:
            raise ValueError(f"CostTable.measure: repeats must be >= 1, got {repeats}")
        points = [(context, count, 1) for context in contexts for count in nodes]
        points += [(context, batch, batch) for context in contexts for batch in batches[1:]]
        times: dict[tuple[int, int, int], list[float]] = {point: [] for point in points}
        for round_ in range(repeats + 1):
            for context, count, batch in points:
                start = time.perf_counter()
                step(count, context, batch)
                elapsed = time.perf_counter() - start
                if round_:
                    times[context, count, batch].append(elapsed)
        least = {point: min(values) for point, values in times.items()}
        alone = cls(
            tuple(nodes), tuple(contexts), tuple(tuple(least[c, n, 1] for n in nodes) for c in contexts)
        )
        more = [
            [max(0.0, least[c, b, b] - float(alone.curve(b, c)[-1])) for b in batches[1:]] for c in contexts
        ]
        surcharge = tuple((0.0, *row) for row in more)
        return cls(alone.nodes, alone.contexts, alone.seconds, tuple(batches), surcharge)

    @cached_property
    def _rows(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        ascending = np.maximum.accumulate
        return ascending(np.array(self.seconds), axis=1), ascending(np.array(self.surcharge), axis=1)

    def curve(self, max_nodes: int, context: float = 0, batch: int = 1) -> NDArray[np.float64]:
        """float64 [max_nodes]: seconds of a step of `batch` requests with 1, 2, ..., max_nodes nodes in all."""
        last = len(self.contexts) - 1
        upper = min(bisect.bisect_left(self.contexts, context), last)
        row, more = (rows[upper] for rows in self._rows)
        if upper and context < self.contexts[upper]:
            below, above = self.contexts[upper - 1 : upper + 1]
            share = (context - below) / (above - below)
            row, more = ((1 - share) * rows[upper - 1] + share * rows[upper] for rows in self._rows)
        curve = _interpolate(np.arange(1, max_nodes + 1), self.nodes, row)
        if batch > 1:
            curve = curve + _interpolate(np.array([batch]), self.batches, more)
        return curve

    def to_json(self) -> str:
        """The table as JSON text."""
        names = ("nodes", "contexts", "seconds", "batches", "surcharge")
        return json.dumps({"format": FORMAT, **{name: getattr(self, name) for name in names}})

    @classmethod
    def from_json(cls, text: str) -> CostTable:
        """The table of `to_json`; ValueError for anything else."""
        try:
            data: Any = json.loads(text)
            if data["format"] != FORMAT:
                raise ValueError(f"CostTable.from_json: format must be {FORMAT}, got {data['format']!r}")
            nodes = tuple(_integer(value) for value in data["nodes"])
            contexts = tuple(_integer(value) for value in data["contexts"])
            batches = tuple(_integer(value) for value in data["batches"])
            rows, more = (
                tuple(tuple(float(value) for value in row) for row in data[name])
                for name in ("seconds", "surcharge")
            )
        except (ArithmeticError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"CostTable.from_json: text must be a cost table, got {error!r}") from error
        return cls(nodes, contexts, rows, batches, more)

    @classmethod
    def cached(cls, key: str, measure: Callable[[], CostTable], folder: Path | None = None) -> CostTable:
        """The table kept under `key` (machine, model, threads, ...), or a new one from `measure`, then kept.

        Files lie in `folder`, by default `env.cache_dir() / "cost"`. An unreadable or corrupt file is
        measured anew and replaced at once or not at all; a folder that cannot be written costs only the next
        measurement.
        """
        folder = folder or env.cache_dir() / "cost"
        path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
        with contextlib.suppress(OSError, ValueError):
            return cls.from_json(path.read_text(encoding="utf-8"))
        table = measure()
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=folder, suffix=".tmp")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(table.to_json())
                os.replace(name, path)
            except BaseException:
                os.unlink(name)
                raise
        return table


def _interpolate(
    at: NDArray[np.int64], points: Sequence[int], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Linear between the points, with the last slope beyond them."""
    result = np.interp(at, points, values)
    if len(points) > 1 and at[-1] > points[-1]:
        slope = (values[-1] - values[-2]) / (points[-1] - points[-2])
        result += slope * np.maximum(at - points[-1], 0)
    return result


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"not an integer: {value!r}")
    return value
