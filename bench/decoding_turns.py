# SPDX-License-Identifier: Apache-2.0
"""One turn of `python -m bench speculation`: decoding of a group of prompts, its seconds, phases and acceptance, and their sums."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from pyspec.engine import LLM, SamplingParams


Cell: TypeAlias = tuple[int, int]  # how often the walk could go on to a depth, and how often it did


@dataclass
class Answer:
    """Decoding of one group: the tokens of its answers, and what decoding took from the first token of the last answer on."""

    outputs: list[list[int]]
    tokens: int
    steps: int
    wall: float
    cpu: float
    phases: dict[str, float]
    depths: list[Cell]
    verified: int  # nodes below the roots


@dataclass
class Sums:
    """What one way came to in a case. ratios: (clock, processor) of each group."""

    ratios: list[tuple[float, float]] = field(default_factory=list)
    tokens: int = 0
    steps: int = 0
    wall: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    depths: list[Cell] = field(default_factory=list)
    verified: int = 0

    def add(self, answer: Answer) -> None:
        self.tokens += answer.tokens
        self.steps += answer.steps
        self.wall += answer.wall
        self.verified += answer.verified
        for phase, seconds in answer.phases.items():
            self.phases[phase] = self.phases.get(phase, 0.0) + seconds
        pairs = zip_longest(self.depths, answer.depths, fillvalue=(0, 0))
        self.depths = [(a[0] + b[0], a[1] + b[1]) for a, b in pairs]

    def ceiling(self, costs: dict[int, float]) -> float:
        """Seconds of plain steps for these tokens over those of steps of the accepted nodes alone. costs: seconds by nodes."""
        accepted = [self.steps, *(cell[1] for cell in self.depths), 0]
        seconds = np.interp(np.arange(1, len(accepted)), list(costs), list(costs.values()))
        ends = -np.diff(accepted)  # steps that accepted 0, 1, ... nodes
        return self.tokens * float(seconds[0]) / float(ends @ seconds)


def answer(llm: LLM, texts: list[list[int]], params: list[SamplingParams]) -> Answer:
    """Answer all texts together."""
    streams = [llm.stream(text, one) for text, one in zip(texts, params, strict=True)]
    tokens = [list(next(stream).token_ids) for stream in streams]
    before, cells = llm.statistics().to_dict(), acceptance(llm)
    wall, cpu = time.perf_counter(), time.process_time()
    for stream, own in zip(streams, tokens, strict=True):
        for chunk in stream:
            own += chunk.token_ids
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    after = llm.statistics().to_dict()
    phases = {phase: seconds - before["seconds"][phase] for phase, seconds in after["seconds"].items()}
    emitted, steps = (after[name] - before[name] for name in ("emitted", "steps"))
    new = [(a[0] - b[0], a[1] - b[1]) for a, b in zip_longest(acceptance(llm), cells, fillvalue=(0, 0))]
    old, now = (sum(draft["verified"] for draft in counts["drafts"].values()) for counts in (before, after))
    return Answer(tokens, emitted, steps, wall, cpu, phases, new, now - old)


def acceptance(llm: LLM) -> list[Cell]:
    """Of all drafts so far, at depth 1, 2, ..."""
    drafts = [draft.by_depth() for draft in llm.statistics().drafts.values()]
    depths = [[cell for cell in cells if cell is not None] for cells in zip_longest(*drafts)]
    return [(sum(cell.tried for cell in cells), sum(cell.accepted for cell in cells)) for cells in depths]


def ratios(one: Answer, plain: Answer) -> tuple[float, float]:
    """Tokens a second over plain's, by the clock and by the processor."""
    tokens = one.tokens / plain.tokens
    return tokens * plain.wall / one.wall, tokens * plain.cpu / one.cpu


def medians(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Of the first and of the second values."""
    first, second = zip(*pairs, strict=True)
    return statistics.median(first), statistics.median(second)
