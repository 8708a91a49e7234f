# SPDX-License-Identifier: Apache-2.0
"""The explanation of a run: it says what the statistics and the costs say."""

from __future__ import annotations

import numpy as np

from pyspec.engine.explain import explanation
from pyspec.engine.statistics import PhaseSeconds, Statistics, StepRecord
from pyspec.trees import TokenTree
from pyspec.trees.cost import CostTable
from pyspec.trees.online import LinearCost, StepCost
from pyspec.trees.planner import Planner
from pyspec.trees.request_plan import CHAIN, UNASKED, RequestPlan


def test_explanation_of_a_run() -> None:
    planner = Planner(StepCost(CostTable((1, 32), (0,), ((5e-3, 20e-3),)), {"greedy": LinearCost(1e-3, 0.0)}))
    plan = RequestPlan()
    planner.begin([plan], [10])
    planner.drafted("suffix", [plan], 0, 5e-4)
    planner.drafted("head", [plan], 3, 4e-3)
    statistics = Statistics()
    chain = TokenTree.chain([1, 2, 3])
    record = StepRecord(
        request=0, step=0, root_position=3, tokens=chain.tokens, parents=chain.parents,
        path_probability=np.ones(3, dtype=np.float32), path=[0, 1], emitted=[2, 4], logprobs=[-0.1, -0.2],
        seconds=PhaseSeconds(1e-3, 6e-3, 1e-3), batch=1, nodes=3, draft="suffix+head", drafted=5, reason=CHAIN,
        plain_seconds=6e-3,
    )  # fmt: skip
    statistics.record(record)
    plain = record._replace(
        tokens=chain.tokens[:1], parents=chain.parents[:1], path=[0], emitted=[5], draft="", drafted=0
    )
    for _ in range(3):
        statistics.record(plain._replace(reason=UNASKED, failure="head: NaN"))
    text = explanation(statistics, planner)
    for expected in [
        "5 tokens in 4 steps: 1.25 tokens a step.",
        "About 0.94 times the speed of plain decoding",  # 5 x 6 ms in 32 ms
        "Time: draft 12%, model 75%, verify 12%; 8.00 ms a step and request.",
        "Draft suffix+head: 5 tokens proposed in 1 steps, 2 verified, 1 accepted; 2.00 tokens a step.",
        "A call of suffix takes 0.49 ms; 1 calls.",
        "A call of head takes 3.93 ms, 3.0 levels; 1 calls.",
        "Accepted by depth: 100% (1/1), 0% (0/1)",
        "Accepted by rank:  50% (1/2)",
        f"      3    75%  {UNASKED}",
        f"      1    25%  {CHAIN}",
        "      3   100%  head: NaN",
    ]:
        assert expected in text, text
    lines = text.splitlines()
    (at,) = (i for i, line in enumerate(lines) if "must accept" in line)
    assert lines[at + 1].split() == ["1", "6.00", "1.00", "0.00"]
    assert lines[at + 6].split() == ["32", "21.00", "3.50", "2.50"]


def test_explanation_before_anything_was_decoded() -> None:
    text = explanation(Statistics(), Planner(StepCost(CostTable((1,), (0,), ((1.0,),)))))
    assert text.startswith("Nothing has been decoded yet.\n\nWhat a step costs")
