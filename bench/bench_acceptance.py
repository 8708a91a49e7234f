# SPDX-License-Identifier: Apache-2.0
"""Acceptance: tokens a step by draft, tree, verifier and temperature, over HumanEval, GSM8K and MT-bench.

Everything that a draft proposes is verified (speculation "always"), so these figures say what drafts and verifiers are worth, not
what the planner makes of them. A step emits the accepted nodes' tokens and one more: plain decoding has 1. Verifiers with fresh
randomness take trees drawn from a draft's law, so they run with drafts that have one. --prompts are of each set; --only takes
patterns of cases (draft/verifier/temperature/set).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .bench_equality import CONTEXT, MODEL_DRAFTS, prompt_ids
from .harness import Options, Row, make_row
from .prompts import SETS, Prompt, load_set

if TYPE_CHECKING:
    from pyspec.engine import LLM
    from pyspec.trees.policy import TreePolicy

TEMPERATURES = (0.0, 0.3, 0.7, 1.0)
BATCH = 8


@dataclass(frozen=True)
class Way:
    """One draft, how its trees grow (None: as its default), and the verifier."""

    name: str
    draft: Any
    policy: TreePolicy | None = None
    verifier: str = "shared_noise"

    def case(self, temperature: float, name: str) -> str:
        return f"{self.name}/{self.verifier}/T{temperature}/{name}"


def ways() -> list[Way]:
    """Every way, and with the head trees of as many nodes under each verifier."""
    from pyspec.trees import Drawn
    from pyspec.trees.grown_hybrid import GrownHybridPolicy
    from pyspec.trees.policy import BestFirstPolicy, StaticPolicy
    from pyspec.trees.shapes import parse_shape

    chain, tree = parse_shape("chain4"), parse_shape("3-2-1")
    head = MODEL_DRAFTS["eagle3"]
    return [
        Way("suffix", "suffix"),
        Way("ngram", "ngram"),
        *(Way(name, draft) for name, draft in MODEL_DRAFTS.items()),
        Way("suffix+eagle3", ["suffix", head]),
        Way("eagle3 chain4", head, StaticPolicy(chain)),
        Way("eagle3 chain4", head, StaticPolicy(chain, Drawn.IID), "block"),
        Way("eagle3 3-2-1", head, StaticPolicy(tree)),
        Way("eagle3 3-2-1", head, StaticPolicy(tree, Drawn.DETERMINISTIC), "target"),
        Way("eagle3 3-2-1", head, StaticPolicy(tree, Drawn.WITHOUT_REPLACEMENT), "top_down"),
        Way("eagle3 3-2-1", head, StaticPolicy(tree, Drawn.HYBRID), "traversal"),
        Way("eagle3 grown 3-6-6", head, GrownHybridPolicy((3, 6, 6)), "traversal"),
        Way("eagle3 best-first, depth 3", head, BestFirstPolicy(max_depth=3, beam=6)),
    ]


def rows(options: Options) -> Iterator[Row]:
    """A row for every way, set and temperature."""
    from pyspec.engine import LLM

    began = time.monotonic()
    count = 2 if options.quick else options.prompts
    sets = {name: load_set(name, count) for name in SETS}
    for way in ways():
        cases = {way.case(t, name): (t, name) for t in TEMPERATURES for name in sets}
        cases = {case: which for case, which in cases.items() if options.wants(case)}
        if not cases:
            continue
        llm = LLM(
            options.model, speculation="always", draft=way.draft, draft_policy=way.policy, verifier=way.verifier,
            max_batch=BATCH, max_context=CONTEXT, max_nodes=16, calibrate=False,
        )  # fmt: skip
        for case, (temperature, name) in cases.items():
            if options.seconds is not None and time.monotonic() - began > options.seconds:
                print(f"stopped before {case}", file=sys.stderr)
                return
            length = tokens_a_step(llm, sets[name], temperature, options.max_tokens)
            yield make_row(
                "acceptance", case, llm.executor_name, "mean_accepted_length", length, "tokens/step"
            )


def tokens_a_step(llm: LLM, prompts: list[Prompt], temperature: float, max_tokens: int) -> float:
    """Tokens behind the first one of all answers over their decode steps."""
    from pyspec.engine import SamplingParams

    texts = [prompt_ids(llm, prompt, max_tokens) for prompt in prompts]
    params = [
        SamplingParams(temperature=temperature, seed=i, max_tokens=max_tokens) for i in range(len(texts))
    ]
    answers = llm.generate(texts, params)
    steps = sum(answer.stats.steps for answer in answers)
    return sum(len(answer.token_ids) - 1 for answer in answers) / max(1, steps)
