# SPDX-License-Identifier: Apache-2.0
"""build_tree in Triton, bit for bit: the shared cases, hard rows, ties, level after level, planted bugs."""

from __future__ import annotations

import random

import pytest
import torch
from emulation import faults, needs_ttsem, same_bits, supported
from sampling_fuzz import law_tensors, row
from torch import Tensor

from pyspec import spec
from pyspec.contract import Case
from pyspec.kernels import build_tree as kernels

CASES = [case for case in supported("build_tree") if case.values[0].args[0].size(1) < 1000]
rules = pytest.mark.parametrize("rule", ["deterministic", "shared_noise"])


def check_bits(args: tuple[Tensor, ...], width: int, rule: str) -> tuple[Tensor, Tensor, Tensor]:
    got = kernels.build_tree(*args, width=width, rule=rule)
    for a, b in zip(got, spec.build_tree.run(*args, width=width, rule=rule), strict=True):
        same_bits(a, b)
    return got


def frontier(logits: Tensor, sizes: list[int], seed: int) -> tuple[Tensor, ...]:
    """Arguments with hard laws and scores; a node that is none among them."""
    rng = random.Random(seed)
    position, temperature, _, _, _, _, seeds, stream = law_tensors(rng, len(sizes), logits.size(1))
    score = -torch.rand(logits.size(0), generator=torch.Generator().manual_seed(seed))
    score[-1] = -torch.inf
    cu_t = torch.tensor([0, *sizes]).cumsum(0).int()
    return logits, score, cu_t, position, temperature, seeds, stream


@pytest.mark.parametrize("case", CASES)
def test_bits(case: Case) -> None:
    check_bits(case.args, **case.kwargs)


@rules
def test_hard_rows(rule: str) -> None:
    """Ties, special values, rows without any finite value."""
    rng = random.Random(3)
    logits = torch.stack([row(rng, 300) for _ in range(9)])
    check_bits(frontier(logits, [4, 0, 5], 1), 20, rule)


def test_ties_go_by_parent_and_by_token() -> None:
    """Greedy requests see no noise: all scores of all nodes are equal, 70 of 3 * 40 are kept."""
    args = list(frontier(torch.zeros(3, 40), [3], 0))
    args[1], args[4] = torch.zeros(3), torch.zeros(1)
    token, parent, _ = check_bits(tuple(args), 70, "shared_noise")
    assert parent[0].tolist() == [0] * 40 + [1] * 30
    assert token[0].tolist() == [*range(40), *range(30)]


@rules
def test_level_after_level(rule: str) -> None:
    """The scores of one level are the node scores of the next; missing nodes have no children."""
    g = torch.Generator().manual_seed(2)
    width, batch, vocab = 4, 2, 3
    args = (
        torch.randn(batch, vocab, generator=g), torch.zeros(batch),
        torch.arange(batch + 1, dtype=torch.int32),
        torch.tensor([5, 9], dtype=torch.int32), torch.tensor([0.8, 1.2]), torch.tensor([1, -2]),
        torch.zeros(batch, dtype=torch.int32),
    )  # fmt: skip
    _, parent, score = check_bits(args, width, rule)
    assert (parent[:, vocab] == -1).all()
    logits = torch.randn(batch * width, vocab, generator=g)
    following = (
        logits,
        score.flatten(),
        torch.arange(batch + 1, dtype=torch.int32) * width,
        args[3] + 1,
        *args[4:],
    )
    _, parent, _ = check_bits(following, width, rule)
    assert (parent < vocab).all()


def test_views() -> None:
    g = torch.Generator().manual_seed(4)
    logits, score, cu_t, *laws = frontier(torch.randn(4, 90, generator=g)[:, 3:70], [2, 2], 2)
    odd = (logits, torch.stack([score, score], dim=1)[:, 0], cu_t, *laws)
    check_bits(odd, 5, "shared_noise")


def test_noise_and_results_go_by_the_tokens_of_columns() -> None:
    """Runs of neighbours, gaps and a large id, as a view; the rows of one column number differ by their tokens' noise."""
    args = list(frontier(torch.zeros(4, 300), [1, 3], 5))
    args[1], args[4] = torch.zeros(4), torch.tensor([1.0, 0.7])
    ids = torch.cat([torch.arange(100), torch.arange(1000, 2990, 10), torch.tensor([262143])]).int()
    token, _, _ = check_bits((*args, torch.stack([ids, ids], 1)[:, 0]), 40, "shared_noise")
    assert (token >= 1000).any()
    plain, _, _ = check_bits(tuple(args), 40, "shared_noise")
    assert not torch.equal(token, plain)


@needs_ttsem
@pytest.mark.parametrize(("bug", "kind"), [("one more", "oob_write"), ("one row", "race")])
def test_planted_bugs_are_found(bug: str, kind: str) -> None:
    logits, score, cu_t, *laws = frontier(torch.randn(4, 90), [2, 2], 2)
    with faults(kind):
        kernels._launch(logits, score, cu_t, tuple(laws), None, 5, "deterministic", bug)


def test_noise_of_another_position_is_found() -> None:
    logits, score, cu_t, *laws = frontier(torch.randn(4, 90), [2, 2], 2)
    laws[1] = torch.ones(2)
    got = kernels._launch(logits, score, cu_t, tuple(laws), None, 5, "shared_noise", "next position")
    want = spec.build_tree.run(logits, score, cu_t, *laws, width=5, rule="shared_noise")
    with pytest.raises(AssertionError):
        same_bits(got[0], want[0])


def test_columns_in_the_place_of_tokens_are_found() -> None:
    logits, score, cu_t, *laws = frontier(torch.randn(4, 90), [2, 2], 2)
    ids = torch.arange(90, dtype=torch.int32) * 3 + 1
    got = kernels._launch(logits, score, cu_t, tuple(laws), ids, 5, "shared_noise", "columns")
    want = spec.build_tree.run(logits, score, cu_t, *laws, ids, width=5, rule="shared_noise")
    same_bits(got[2], want[2])
    with pytest.raises(AssertionError):
        same_bits(got[0], want[0])
