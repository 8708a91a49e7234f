# SPDX-License-Identifier: Apache-2.0
"""What steps did and cost: one record per request and step, and the sums that explain a run.

Definitions, for one request in one step:

    verified   nodes below the root that the model computed
    accepted   those on the path that the target took; the others are rejected
    tried      at depth d: the path reached a node of depth d - 1 that has children; at rank r: that node has an r-th
               child (0: the first in verification order)
    emitted    the tokens that the request kept: the path, one more, less what lies behind an end of the answer

so accepted / tried is the probability that the walk goes on at depth d, and that it goes on with the r-th child. The second is the
acceptance vector of the dynamic programme in pyspec/trees/sequoia.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

PHASES = ("draft", "model", "verify")
ENOUGH = 8  # plain steps, to compare what they took with what was expected
MAX_TEXTS = 64  # distinct reasons and failures that are counted apart; the rest is "other"


class PhaseSeconds(NamedTuple):
    """Seconds of one whole step, which all its requests share."""

    draft: float = 0.0  # proposing, building and choosing
    model: float = 0.0  # laying out the batch and running the model
    verify: float = 0.0  # sampling, walking, moving KV, and telling requests and drafts

    @property
    def total(self) -> float:
        return self.draft + self.model + self.verify


class StepRecord(NamedTuple):
    """One request's part in one step. Arrays are the step's own: they are read, never written.

    request           number of the request within its LLM
    step              decode steps of this request before this one
    root_position     absolute position of the root's token
    tokens, parents   int32 [T]: the verified tree, its root first
    path_probability  float32 [T]: the draft's probability that the target takes the path to each node
    path              accepted nodes, root first
    emitted           tokens that the request kept
    logprobs          the model's natural log-probability of each emitted token, where somebody asked for it
    seconds           of the whole step
    batch             requests that decode in this step, at least 1
    nodes             nodes of the whole step, of all its requests, tokens of prompts included
    prompt_tokens     those of them that are tokens of prompts: such a step tells nothing about decoding alone
    draft             who proposed: "suffix", "suffix+head", ...; "" if nobody was asked
    drafted           nodes below the root that it proposed, before the tree was cut to `tokens`
    reason            why this tree and no other: one of few fixed texts
    failure           why the draft's proposal was refused; "" if it was not
    plain_seconds     what a step of the same requests without trees is expected to take now; None if unknown
    top_logprobs      per emitted token, the model's likeliest tokens with their log-probabilities, where asked for
    """

    request: int
    step: int
    root_position: int
    tokens: NDArray[np.int32]
    parents: NDArray[np.int32]
    path_probability: NDArray[np.float32]
    path: Sequence[int]
    emitted: Sequence[int]
    logprobs: Sequence[float]
    seconds: PhaseSeconds
    batch: int
    nodes: int
    prompt_tokens: int = 0
    draft: str = ""
    drafted: int = 0
    reason: str = ""
    failure: str = ""
    plain_seconds: float | None = None
    top_logprobs: Sequence[Sequence[tuple[int, float]]] = ()


class Observer(Protocol):
    """Whoever wants to know of every step."""

    def record(self, record: StepRecord) -> None:
        """Called once per decoding request and step, after the request took its tokens."""


@dataclass
class Acceptance:
    """How often something was tried and accepted."""

    tried: int = 0
    accepted: int = 0

    @property
    def rate(self) -> float:
        """accepted / tried; 0 if it was never tried."""
        return self.accepted / self.tried if self.tried else 0.0


@dataclass
class DraftCounts:
    """What one draft's proposals came to. `cells` is keyed by (depth, rank), depth from 1 and rank from 0."""

    steps: int = 0
    emitted: int = 0
    drafted: int = 0
    verified: int = 0
    accepted: int = 0
    cells: dict[tuple[int, int], Acceptance] = field(default_factory=dict)

    @property
    def rejected(self) -> int:
        return self.verified - self.accepted

    @property
    def tokens_per_step(self) -> float:
        return self.emitted / self.steps if self.steps else 0.0

    def add(self, record: StepRecord) -> None:
        """Count one record."""
        self.steps += 1
        self.emitted += len(record.emitted)
        self.drafted += record.drafted
        self.verified += len(record.tokens) - 1
        self.accepted += len(record.path) - 1
        if len(record.tokens) == 1:
            return
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(record.parents.tolist()):
            children.setdefault(parent, []).append(node)
        taken = set(record.path)
        for depth, node in enumerate(record.path, start=1):
            for rank, child in enumerate(children.get(node, ())):
                cell = self.cells.setdefault((depth, rank), Acceptance())
                cell.tried += 1
                cell.accepted += child in taken

    def by_depth(self) -> list[Acceptance]:
        """Acceptance at depth 1, 2, ...: the walk goes on to that depth, given that it could."""
        result = [Acceptance() for _ in range(max((depth for depth, _ in self.cells), default=0))]
        for (depth, rank), cell in self.cells.items():
            result[depth - 1].tried += cell.tried if rank == 0 else 0  # every node with children has a first
            result[depth - 1].accepted += cell.accepted
        return result

    def by_rank(self) -> list[Acceptance]:
        """Acceptance of the first, second, ... child of a node on the path."""
        result = [Acceptance() for _ in range(1 + max((rank for _, rank in self.cells), default=-1))]
        for (_, rank), cell in self.cells.items():
            result[rank].tried += cell.tried
            result[rank].accepted += cell.accepted
        return result

    def rank_vector(self) -> NDArray[np.float64]:
        """float64 [ranks]: the acceptance vector of trees/sequoia.py; sums to at most 1 over the ranks tried together."""
        return np.array([rank.rate for rank in self.by_rank()], dtype=np.float64)


class Statistics:
    """Sums over all records: an Observer of constant size, some microseconds a record."""

    def __init__(self) -> None:
        self.drafts: dict[str, DraftCounts] = {}
        self.reasons: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._compared = self._plain = 0.0
        self._plain_steps, self._plain_seconds, self._plain_expected = 0, 0.0, 0.0

    def record(self, record: StepRecord) -> None:
        """Count one request's part in one step."""
        counts = self.drafts.get(record.draft)
        if counts is None:
            counts = self.drafts[record.draft] = DraftCounts()
        counts.add(record)
        _count(self.reasons, record.reason)
        if record.failure:
            _count(self.failures, record.failure)
        if record.prompt_tokens:
            return
        share = 1.0 / record.batch
        for phase, value in zip(PHASES, record.seconds, strict=True):
            self.seconds[phase] += share * value
        if record.plain_seconds is not None:
            self._compared += share * record.seconds.total
            self._plain += share * record.plain_seconds * len(record.emitted)
            if record.nodes == record.batch and not record.draft:
                self._plain_steps += 1
                self._plain_seconds += record.seconds.total
                self._plain_expected += record.plain_seconds

    @property
    def steps(self) -> int:
        """Records: steps times the requests that decoded in them."""
        return sum(counts.steps for counts in self.drafts.values())

    @property
    def emitted(self) -> int:
        return sum(counts.emitted for counts in self.drafts.values())

    @property
    def tokens_per_step(self) -> float:
        """Mean accepted length plus one: tokens a request keeps per step."""
        return self.emitted / self.steps if self.steps else 0.0

    @property
    def ratio_to_plain(self) -> float | None:
        """How many times faster than plain decoding, as far as the cost table knows; None before a step was compared.

        (sum of emitted tokens x seconds of a plain step of the same requests) / (sum of seconds of the steps taken). A plain step
        emits one token per request; what it costs is the table measured at start-up for this batch and context, times how much
        slower or faster than that table the machine has been lately, times what the plain steps of this run (of at least
        ENOUGH) took over that: with the host's part and the machine's interruptions. Steps that also computed prompts are
        left out. An estimate: the other plain steps were not run.
        """
        if self._compared <= 0:
            return None
        known = self._plain_steps >= ENOUGH
        return (self._plain_seconds / self._plain_expected if known else 1.0) * self._plain / self._compared

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        pairs = lambda cells: [[cell.tried, cell.accepted] for cell in cells]
        return {
            "steps": self.steps,
            "emitted": self.emitted,
            "tokens_per_step": self.tokens_per_step,
            "ratio_to_plain": self.ratio_to_plain,
            "seconds": dict(self.seconds),
            "reasons": dict(self.reasons),
            "failures": dict(self.failures),
            "drafts": {
                name: {
                    "steps": counts.steps,
                    "emitted": counts.emitted,
                    "drafted": counts.drafted,
                    "verified": counts.verified,
                    "accepted": counts.accepted,
                    "rejected": counts.rejected,
                    "by_depth": pairs(counts.by_depth()),
                    "by_rank": pairs(counts.by_rank()),
                }
                for name, counts in self.drafts.items()
            },
        }


def _count(counter: Counter[str], text: str) -> None:
    counter[text if text in counter or len(counter) < MAX_TEXTS else "other"] += 1


class Observers:
    """The observer of an LLM: its statistics, and whoever else looks on for a while."""

    def __init__(self) -> None:
        self.statistics = Statistics()
        self._others: list[Observer] = []

    @property
    def wants_logprobs(self) -> bool:
        """Whether somebody looks at the records themselves; the statistics need no logprobs."""
        return bool(self._others)

    def record(self, record: StepRecord) -> None:
        """Tell all of them."""
        self.statistics.record(record)
        for observer in self._others:
            observer.record(record)

    @contextmanager
    def joined_by(self, observer: Observer) -> Iterator[None]:
        """`observer` is told of every record too, until the context ends."""
        self._others.append(observer)
        try:
            yield
        finally:
            self._others.remove(observer)
