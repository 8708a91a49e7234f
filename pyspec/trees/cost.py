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
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyspec import env

from .token_tree import TokenTree

if TYPE_CHECKING:
    from pyspec.drafts.base import Proposal

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


@dataclass
class Calibration:
    """What a draft's path probabilities are worth, learned online.

    The range [0, 1] is split into `buckets`; each holds how many nodes were tried and accepted, with `prior`
    imaginary trials that succeeded as often as predicted. All counts shrink by `decay` at every step, also
    when nothing was proposed: a draft that failed is believed again a little later.
    """

    buckets: int = 16
    prior: float = 8.0
    decay: float = 0.99
    tried: NDArray[np.float64] = field(init=False)
    accepted: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        if self.buckets < 1 or self.prior <= 0 or not 0 < self.decay <= 1:
            raise ValueError(
                f"Calibration: buckets >= 1, prior > 0, 0 < decay <= 1 must hold, "
                f"got {self.buckets}, {self.prior}, {self.decay}"
            )
        self.tried = np.zeros(self.buckets)
        self.accepted = np.zeros(self.buckets)

    def _bucket(self, probability: NDArray[np.float32]) -> NDArray[np.int64]:
        return np.minimum((probability * self.buckets).astype(np.int64), self.buckets - 1)

    def estimate(self, path_probability: NDArray[np.float32]) -> NDArray[np.float64]:
        """float64 [T]: acceptance probability of each node of a proposal, non-increasing; 1 at the root."""
        bucket = self._bucket(path_probability)
        hits = self.accepted[bucket] + self.prior * path_probability
        estimate = hits / (self.tried[bucket] + self.prior)
        estimate[:1] = 1.0
        return np.minimum.accumulate(estimate)

    def observe(self, path_probability: NDArray[np.float32], accepted: Sequence[int]) -> None:
        """Records one step: the predictions of the verified nodes, and which of them the target took.

        path_probability [T] of the nodes that were verified (not of those cut off before), root included;
        accepted: their indices on the accepted path, the root's is ignored.
        """
        self.tried *= self.decay
        self.accepted *= self.decay
        bucket = self._bucket(path_probability)
        np.add.at(self.tried, bucket[1:], 1.0)
        np.add.at(self.accepted, bucket[[node for node in accepted if node]], 1.0)


def choose_sizes(
    proposals: Sequence[Proposal],
    table: CostTable,
    calibration: Calibration | Sequence[Calibration],
    contexts: Sequence[int],
    margin: float = 0.05,
) -> list[int]:
    """How many of each proposal's first nodes to verify in a step that serves all of them together.

    Maximises (B + sum of the kept nodes' acceptance probabilities) / seconds(all kept nodes): expected tokens
    a second. Nodes join in order of probability over all requests, so every request gets what its draft is
    worth. Returns 1 for every request (plain decoding) unless the rate beats plain decoding's by `margin`.
    `contexts` are committed lengths; the table is read at their mean. `calibration` may be one per request.
    """
    num_requests = len(proposals)
    if not num_requests:
        return []
    if len(contexts) != num_requests:
        raise ValueError(f"choose_sizes: contexts must have {num_requests} values, got {len(contexts)}")
    each = [calibration] * num_requests if isinstance(calibration, Calibration) else calibration
    estimates = [
        own.estimate(proposal.path_probability) for own, proposal in zip(each, proposals, strict=True)
    ]
    gains = np.concatenate([estimate[1:] for estimate in estimates])
    owners = np.repeat(np.arange(num_requests), [len(estimate) - 1 for estimate in estimates])
    order = np.argsort(-gains, kind="stable")
    tokens = num_requests + np.concatenate(([0.0], np.cumsum(gains[order])))
    seconds = table.curve(num_requests + len(gains), float(np.mean(contexts)))[num_requests - 1 :]
    rate = tokens / seconds
    best = int(np.argmax(rate))
    if rate[best] < rate[0] * (1 + margin):
        best = 0
    return (1 + np.bincount(owners[order[:best]], minlength=num_requests)).tolist()


def prune(tree: TokenTree, keep: Sequence[int]) -> TokenTree:
    """The nodes of `tree` in `keep`, which must hold the root and every kept node's parent; marked pruned.

    Deterministic and shared-noise trees stay exact for every verifier that took them, others for the walks
    alone.
    """
    kept = sorted(set(keep))
    if not kept or kept[0] != 0 or kept[-1] >= len(tree):
        raise ValueError(f"prune: keep must hold the root and be < {len(tree)}, got {list(keep)}")
    place = {node: i for i, node in enumerate(kept)}
    parents = tree.parents.tolist()
    for node in kept[1:]:
        if parents[node] not in place:
            raise ValueError(f"prune: keep must hold every parent, got {node} without {parents[node]}")
    links = np.array([-1] + [place[parents[node]] for node in kept[1:]], dtype=np.int32)
    pruned = tree.pruned or len(kept) < len(tree)
    return TokenTree.unchecked(tree.tokens[kept], links, tree.drawn, pruned)


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
