# SPDX-License-Identifier: Apache-2.0
"""CUDA verify_tree under the emulator: the specification's bits both ways it walks, every schedule, planted bugs, what is read."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from contract_tests import broken_calls, error_of
from cuda_emulator import emulator
from sampling_fuzz import bits, law_tensors, tree_call
from torch import Tensor

from pyspec import spec
from pyspec.contract import Case

Call = tuple[tuple[Tensor, ...], dict[str, int]]
CASES = list(spec.verify_tree.cases())
ALL_AT_ONCE = 264  # nodes: with more, a block per request walks its path row by row


def ints(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def forest(rng: random.Random, sizes: list[int], vocab: int, num_logprobs: int) -> Call:
    """Requests of these sizes; of four nodes three have the token that is likeliest below their parent."""
    g = torch.Generator().manual_seed(rng.randrange(2**31))
    logits = 4 * torch.randn(sum(sizes), vocab, generator=g)
    laws = law_tensors(rng, len(sizes), vocab, typical=False)
    laws[1][:] = torch.tensor([rng.choice([0.0, 0.8, 1.0]) for _ in sizes])
    laws[2][::2] = 0  # half of the requests without filters
    laws[3][::2] = 1
    laws[4][::2] = 0
    tokens, parents = [], []
    for size in sizes:
        begin = len(tokens)
        for i in range(size):
            parent = rng.choice([i - 1, rng.randint(0, i - 1)]) if i else -1
            likeliest = int(logits[begin + max(parent, 0)].argmax())
            tokens.append(likeliest if rng.random() < 0.75 else rng.randrange(vocab))
            parents.append(parent)
    cu_t = ints([sum(sizes[:b]) for b in range(len(sizes) + 1)])
    kwargs = {"max_path": max(sizes) + 1, "num_logprobs": num_logprobs}
    return (logits, ints(tokens), ints(parents), cu_t, *laws), kwargs


def long_call() -> Call:
    """More nodes than are picked all at once, so that requests walk row by row."""
    rng = random.Random(7)
    call = forest(rng, [rng.choice([0, 1, 2, 8, 9]) for _ in range(80)], 40, 2)
    assert call[0][0].size(0) > ALL_AT_ONCE
    return call


def short_call() -> Call:
    return forest(random.Random(9), [14, 0, 1, 9, 20, 20, 20, 20], 12, 3)


def siblings_call() -> Call:
    """Ten children of the root with the token that it picks, each with a child of its own token."""
    logits = torch.zeros(21, 4)
    logits[:, 2] = 9.0
    parents = ints([-1, *[0] * 10, *range(1, 11)])
    law = [torch.tensor([value]) for value in (0.0, 1.0, 0.0, 1.0)]
    zero = ints([0])
    laws = (ints([3]), law[0], zero, *law[1:], torch.tensor([0]), zero)
    return (logits, torch.full((21,), 2).int(), parents, ints([0, 21]), *laws), {
        "max_path": 4,
        "num_logprobs": 0,
    }


def agree(call: Call, **how: Any) -> bool:
    args, kwargs = call
    want, got = spec.verify_tree.run(*args, **kwargs), emulator.call("verify_tree", *args, **kwargs, **how)
    return all(a.shape == b.shape and torch.equal(bits(a), bits(b)) for a, b in zip(want, got, strict=True))


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_equals_specification_on_the_cases(case: Case) -> None:
    assert agree((case.args, case.kwargs))


def test_equals_specification_on_random_trees() -> None:
    rng = random.Random(21)
    calls = [tree_call(rng) for _ in range(60)]
    assert [i for i, call in enumerate(calls) if not agree(call)] == []


@pytest.mark.parametrize("call", [short_call, long_call])
def test_both_ways_to_walk(call: Any) -> None:
    args, kwargs = call()
    assert agree((args, kwargs))
    path_len = emulator.call("verify_tree", *args, **kwargs)[1]
    assert path_len.max() > 3


def test_both_ways_give_the_same_bits() -> None:
    """A batch that is walked row by row, against each of its requests alone."""
    (logits, tokens, parents, cu_t, *laws), kwargs = long_call()
    whole = emulator.call("verify_tree", logits, tokens, parents, cu_t, *laws, **kwargs)
    for b in range(0, 80, 8):
        nodes = slice(int(cu_t[b]), int(cu_t[b + 1]))
        alone = (
            logits[nodes],
            tokens[nodes],
            parents[nodes],
            cu_t[b : b + 2] - cu_t[b],
            *(t[b : b + 1] for t in laws),
        )
        for a, w in zip(emulator.call("verify_tree", *alone, **kwargs), whole, strict=True):
            assert torch.equal(bits(a[0]), bits(w[b]))


def test_the_first_of_equal_siblings_is_walked() -> None:
    assert agree(siblings_call())
    path = emulator.call("verify_tree", *siblings_call()[0], **siblings_call()[1])[0]
    assert path.tolist() == [[0, 1, 11, -1]]


@pytest.mark.parametrize("call", [short_call, long_call])
def test_rows_that_are_not_walked_do_not_matter(call: Any) -> None:
    args, kwargs = call()
    want = emulator.call("verify_tree", *args, **kwargs)
    walked = torch.zeros(args[0].size(0), dtype=torch.bool)
    for b, begin in enumerate(args[3][:-1].tolist()):
        walked[[begin + node for node in want[0][b].tolist() if node >= 0]] = True
    assert not walked.all()
    args[0][~walked] = torch.nan
    for a, b in zip(want, emulator.call("verify_tree", *args, **kwargs), strict=True):
        assert torch.equal(bits(a), bits(b))


def test_a_path_longer_than_max_path_is_cut_there() -> None:
    """The device cannot refuse it; it must not write beyond the outputs either."""
    args, kwargs = siblings_call()
    path, path_len, emitted, *_ = emulator.call("verify_tree", *args, **{**kwargs, "max_path": 2})
    assert path.tolist() == [[0, 1]]
    assert path_len.tolist() == [2]
    assert emitted.tolist() == [[2, 2]]


@pytest.mark.parametrize("order", emulator.ORDERS)
@pytest.mark.parametrize("copies", emulator.COPIES)
def test_every_order_of_threads_with_the_checker(order: str, copies: str) -> None:
    with emulator.schedule(order=order, copies=copies, seed=6):
        assert agree((CASES[0].args, CASES[0].kwargs), checked=True)
        assert agree((CASES[3].args, CASES[3].kwargs), checked=True)


def test_row_by_row_with_the_checker() -> None:
    with emulator.schedule(order="random_warps", seed=2):
        assert agree(long_call(), checked=True)


PLANTED = {1: long_call, 11: short_call, 12: siblings_call, 13: short_call}


@pytest.mark.parametrize("bug", sorted(PLANTED))
def test_planted_bug_changes_bits(bug: int) -> None:
    assert not agree(PLANTED[bug](), bug=bug)


@pytest.mark.parametrize("call", [short_call, long_call])
def test_planted_race_is_found(call: Any) -> None:
    with pytest.raises(emulator.EmulatorError) as error:
        agree(call(), bug=14, checked=True)
    assert "race" in error.value.kinds


def test_bytes_read() -> None:
    """Row by row, only rows of the paths are read; all at once, every row: from memory once, later passes from L2."""
    for call in (short_call, long_call):
        (logits, *args), kwargs = call()
        with emulator.counting() as counters:
            path_len = emulator.call("verify_tree", logits, *args, **kwargs)[1]
        rows = logits.size(0) if call is short_call else int(path_len.sum())
        row_bytes = 4 * logits.size(1)
        moved = 32 * counters.traffic["logits"].read_sectors_unique
        assert rows * row_bytes <= moved <= rows * (row_bytes + 64)  # a row's ends share sectors with others
        if call is long_call:
            assert rows < logits.size(0)


def test_refuses_what_the_specification_refuses() -> None:
    for _, args, kwargs in broken_calls(spec.verify_tree):
        want = error_of(lambda args=args, kwargs=kwargs: spec.verify_tree.run(*args, **kwargs))
        assert (
            error_of(lambda args=args, kwargs=kwargs: emulator.call("verify_tree", *args, **kwargs)) == want
        )
