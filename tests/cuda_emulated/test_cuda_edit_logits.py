# SPDX-License-Identifier: Apache-2.0
"""CUDA edit_logits under the emulator: the specification's bits, every schedule, views, planted bugs, traffic."""

from __future__ import annotations

import random

import pytest
import torch
from contract_tests import broken_calls, error_of
from cuda_emulator import emulator
from emulated_calls import (
    all_same,
    by_specification,
    emulated,
    how_caught,
    is_the_same_in_every_order,
    is_the_same_strided,
)
from test_edit_logits import fuzz_call, ints, plain_call

from pyspec import spec
from pyspec.contract import Case

OP = "edit_logits"
CASES = list(spec.edit_logits.cases())
NAMES = [term.name for term in spec.edit_logits.inputs]


def long_path() -> Case:
    """A chain of 60 nodes of five tokens over two parts of a row; the history is longer than a block has threads."""
    n, vocab = 60, 9000
    g = torch.Generator().manual_seed(3)
    history = torch.randperm(vocab, generator=g)[:1200].int()
    history[:2] = ints(3, 8999)
    history = history.unique()
    biased = torch.cat([history[::3], ints(1, 3, 700)]).unique()
    call = plain_call(
        tuple(range(-1, n - 1)), vocab, logits=torch.randn(n, vocab, generator=g), history=history,
        tokens=ints(1, 3, 8999, 700, 8193)[torch.arange(n) % 5], history_count=torch.arange(history.numel()).int() % 7,
        repetition=torch.tensor([1.3]), presence=torch.tensor([0.2]), frequency=torch.tensor([0.7]),
        bias_token=biased, bias=torch.randn(biased.numel(), generator=g),
        mask=torch.randint(-(2**31), 2**31, (2, 282), generator=g).int(), mask_row=(torch.arange(n) % 3 - 1).int(),
    )  # fmt: skip
    return Case("long path", tuple(call[name] for name in NAMES))


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in [*CASES, long_path()]])
def test_equals_specification(case: Case) -> None:
    assert all_same(emulated(OP, case), by_specification(OP, case))


def test_equals_specification_on_random_calls() -> None:
    rng = random.Random(11)
    calls = [Case(str(i), fuzz_call(rng)) for i in range(150)]
    assert [c.name for c in calls if not all_same(emulated(OP, c), by_specification(OP, c))] == []


@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[4], long_path()])
def test_every_order_of_threads_with_the_checker(case: Case) -> None:
    assert is_the_same_in_every_order(OP, case)


def test_views() -> None:
    assert is_the_same_strided(OP, CASES[0])
    assert is_the_same_strided(OP, CASES[4])


def test_a_row_that_no_request_has_is_copied() -> None:
    """The device cannot refuse it."""
    args = list(CASES[0].args)
    args[3] = ints(0, 1, 2)
    out = emulator.call(OP, *args)
    assert torch.equal(out[args[14] < 0][1:], args[0][args[14] < 0][1:])


PLANTED = {
    1: {"race"},
    2: {"result"},
    3: {"race"},
    4: {"result"},
    5: {"result"},
    6: {"out of bounds"},
    7: {"race"},
}


@pytest.mark.parametrize("bug", sorted(PLANTED))
def test_planted_bugs(bug: int) -> None:
    assert how_caught(OP, [CASES[0], long_path()], bug) >= PLANTED[bug]


def test_every_row_is_read_and_written_once() -> None:
    case = long_path()
    with emulator.counting() as counters:
        emulator.call(OP, *case.args)
    sectors, bytes_ = counters.traffic, 4 * case.args[0].numel()
    assert bytes_ == 32 * sectors["logits"].read_sectors_unique
    assert bytes_ == 32 * sectors["out"].written_sectors_unique
    edits = case.args[7].numel() + case.args[10].numel() + 5  # of a row, each of a sector
    assert sectors["out"].written_sectors <= sectors["out"].written_sectors_unique + 60 * edits
    history = 4 * case.args[7].numel()
    assert 32 * sectors["history"].read_sectors_per_block <= 2 * 60 * (history + 64)


def test_refuses_what_the_specification_refuses() -> None:
    for _, args, kwargs in broken_calls(spec.edit_logits):
        want = error_of(lambda args=args, kwargs=kwargs: spec.edit_logits.run(*args, **kwargs))
        assert error_of(lambda args=args, kwargs=kwargs: emulator.call(OP, *args, **kwargs)) == want
