# SPDX-License-Identifier: Apache-2.0
"""Statistics against counts made by hand and against a slow count of random walks."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from pyspec.engine.statistics import MAX_TEXTS, Acceptance, PhaseSeconds, Statistics, StepRecord
from pyspec.trees import TokenTree
from pyspec.trees.builders import random_tree


def record(tree: TokenTree, path: list[int], **changes: object) -> StepRecord:
    emitted = list(range(len(path)))
    return StepRecord(
        request=0, step=0, root_position=9, tokens=tree.tokens, parents=tree.parents,
        path_probability=np.ones(len(tree), dtype=np.float32), path=path, emitted=emitted, logprobs=[-0.5] * len(emitted),
        seconds=PhaseSeconds(1.0, 2.0, 3.0), batch=1, nodes=len(tree), draft="suffix", drafted=len(tree) - 1, reason="pays",
    )._replace(**changes)  # fmt: skip


TREE = TokenTree.from_paths(7, [[1, 4], [2, 5], [2, 6], [3]])  # nodes 1 (2), 3 (4, 5), 6 below the root


def test_acceptance_by_depth_and_rank() -> None:
    statistics = Statistics()
    statistics.record(record(TREE, [0, 3, 5]))  # second child, then its second child
    statistics.record(record(TREE, [0, 6]))  # third child, a leaf
    statistics.record(record(TREE, [0]))
    counts = statistics.drafts["suffix"]
    assert (counts.drafted, counts.verified, counts.accepted, counts.rejected) == (18, 18, 3, 15)
    assert counts.by_depth() == [Acceptance(3, 2), Acceptance(1, 1)]
    assert counts.by_rank() == [Acceptance(4, 0), Acceptance(4, 2), Acceptance(3, 1)]
    assert counts.rank_vector().tolist() == [0.0, 0.5, 1 / 3]
    assert (statistics.steps, statistics.emitted, statistics.tokens_per_step) == (3, 6, 2.0)
    assert counts.tokens_per_step == 2.0
    assert counts.cells[2, 1] == Acceptance(1, 1)
    assert Acceptance().rate == 0.0


def test_counts_of_random_walks() -> None:
    """tried and accepted, counted node by node in another way."""
    generator = np.random.default_rng(5)
    statistics, tried, accepted = Statistics(), Counter(), Counter()
    for seed in range(60):
        tree = random_tree(int(generator.integers(1, 30)), 40, seed)
        path = [0]
        while tree.children[path[-1]] and generator.random() < 0.8:
            path.append(int(generator.choice(tree.children[path[-1]])))
        statistics.record(record(tree, path))
        for node in range(1, len(tree)):
            parent = int(tree.parents[node])
            if parent in path:
                cell = int(tree.depths[node]), tree.children[parent].index(node)
                tried[cell] += 1
                accepted[cell] += node in path
    cells = statistics.drafts["suffix"].cells
    assert {key: cell.tried for key, cell in cells.items()} == dict(tried)
    assert {key: cell.accepted for key, cell in cells.items()} == {key: accepted[key] for key in tried}


def test_seconds_of_a_step_are_shared_by_its_requests() -> None:
    statistics = Statistics()
    for _ in range(4):
        statistics.record(record(TREE, [0], batch=4))
    assert statistics.seconds == {"draft": 1.0, "model": 2.0, "verify": 3.0}
    assert statistics.ratio_to_plain is None


def test_ratio_to_plain_is_seconds_that_plain_steps_would_have_taken() -> None:
    statistics = Statistics()
    statistics.record(record(TREE, [0, 3, 5], plain_seconds=4.0))  # 3 tokens in 6 s; plain: 3 x 4 s
    assert statistics.ratio_to_plain == 2.0
    statistics.record(record(TREE, [0], plain_seconds=4.0))  # 1 token in 6 s; plain: 4 s
    assert statistics.ratio_to_plain == 16 / 12
    before = statistics.seconds
    statistics.record(record(TREE, [0], plain_seconds=4.0, prompt_tokens=128))
    assert statistics.ratio_to_plain == 16 / 12
    assert statistics.seconds == before


def test_plain_steps_of_the_run_say_what_plain_steps_cost() -> None:
    statistics = Statistics()
    plain = record(
        TokenTree.chain([7]), [0], draft="", drafted=0, plain_seconds=4.0
    )  # 6 s where 4 were expected
    for _ in range(7):
        statistics.record(plain)
    assert statistics.ratio_to_plain == pytest.approx(4 / 6)
    statistics.record(plain)
    assert statistics.ratio_to_plain == pytest.approx(1.0)
    for _ in range(8):
        statistics.record(
            record(TREE, [0, 3, 5], plain_seconds=4.0)
        )  # three tokens in the time of one plain step
    assert statistics.ratio_to_plain == pytest.approx(2.0)


def test_drafts_reasons_and_failures_are_counted_apart() -> None:
    statistics = Statistics()
    plain = TokenTree.chain([7])
    statistics.record(record(plain, [0], draft="", drafted=0, reason="draft not worth its time"))
    statistics.record(record(plain, [0], drafted=9, reason="does not pay"))
    statistics.record(record(plain, [0], drafted=0, reason="draft failed", failure="NaN"))
    assert statistics.reasons == {"draft not worth its time": 1, "does not pay": 1, "draft failed": 1}
    assert statistics.failures == {"NaN": 1}
    assert statistics.drafts[""].steps == 1
    assert statistics.drafts["suffix"].drafted == 9
    assert statistics.drafts["suffix"].by_depth() == statistics.drafts["suffix"].by_rank() == []
    for i in range(3 * MAX_TEXTS):
        statistics.record(record(plain, [0], failure=f"reason {i}"))
    assert len(statistics.failures) == MAX_TEXTS + 1
    assert statistics.failures["other"] == 3 * MAX_TEXTS - (MAX_TEXTS - 1)


def test_everything_goes_into_json() -> None:
    statistics = Statistics()
    assert json.loads(json.dumps(statistics.to_dict()))["steps"] == 0
    statistics.record(record(TREE, [0, 3, 5], plain_seconds=4.0))
    found = json.loads(json.dumps(statistics.to_dict()))
    assert found["ratio_to_plain"] == 2.0
    assert found["drafts"]["suffix"]["by_rank"] == [[2, 0], [2, 2], [1, 0]]
    assert found["drafts"]["suffix"]["by_depth"] == [[1, 1], [1, 1]]


def test_phases_add_up() -> None:
    assert PhaseSeconds(1.0, 2.0, 4.0).total == pytest.approx(7.0)
