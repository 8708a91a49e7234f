# SPDX-License-Identifier: Apache-2.0
"""CUDA build_tree under the emulator: the specification's bits, ties, levels in a row, every schedule, planted bugs."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from contract_tests import broken_calls, error_of
from cuda_emulator import emulator
from sampling_fuzz import bits, row
from torch import Tensor

from pyspec import spec
from pyspec.contract import Case

Call = tuple[tuple[Tensor, ...], dict[str, Any]]
CASES = list(spec.build_tree.cases())


def random_call(rng: random.Random) -> Call:
    """Frontiers of hard rows; nodes that are none; widths around the vocabulary and beyond all children."""
    vocab = rng.choice([1, 2, 5, 31, 64, 257, rng.randint(1, 5000)])
    sizes = [rng.choice([0, 1, 2, 5]) for _ in range(rng.randint(1, 3))]
    g = torch.Generator().manual_seed(rng.randrange(2**31))
    rows = [row(rng, vocab) for _ in range(sum(sizes))]
    logits = torch.stack(rows) if rows else torch.empty(0, vocab)
    score = -3 * torch.rand(sum(sizes), generator=g)
    score[torch.rand(sum(sizes), generator=g) < 0.1] = rng.choice([-torch.inf, torch.inf, torch.nan])
    many = lambda values, dtype: torch.tensor([rng.choice(values) for _ in sizes], dtype=dtype)
    args = (
        logits, score, torch.tensor([0, *sizes]).cumsum(0).int(), many([0, 3, 2**31 - 1], torch.int32),
        many([0.0, 1e-5, 2.0**-16, 0.4, 1.0, 1.0, 3e38], torch.float32), many([0, -1, 2**62 + 3], torch.int64),
        many([0, 2], torch.int32), part_of_vocabulary(rng, vocab) if rng.random() < 0.4 else None,
    )  # fmt: skip
    width = rng.choice([1, 3, 8, vocab if vocab < 1000 else 1000, 1024])
    return args, {"width": width, "rule": rng.choice(["deterministic", "shared_noise"])}


def part_of_vocabulary(rng: random.Random, columns: int) -> Tensor:
    """Ascending tokens of so many columns: runs of neighbours and gaps."""
    top = rng.choice([columns, 2 * columns + 3, 30 * columns])
    return torch.tensor(sorted(rng.sample(range(top), columns)), dtype=torch.int32)


def one_request(logits: Tensor, width: int, rule: str, temperature: float = 1.0) -> Call:
    ints = lambda *values: torch.tensor(values, dtype=torch.int32)
    rows = logits.size(0)
    args = (
        logits,
        torch.zeros(rows),
        ints(0, rows),
        ints(4),
        torch.tensor([temperature]),
        torch.tensor([9]),
        ints(1),
    )
    return args, {"width": width, "rule": rule}


def tied_call() -> Call:
    """Three equal nodes of four values: the order among equal scores is parent, then token."""
    logits = (torch.arange(300) * 7 % 4).float().repeat(3, 1)
    return one_request(logits, 200, "deterministic")


def noisy_call() -> Call:
    """A flat row beside a sloping one: which tokens are the best is the noise's choice."""
    logits = torch.zeros(2, 9000)
    logits[1] = torch.linspace(-3, 3, 9000)
    return one_request(logits, 900, "shared_noise")


def flat_call() -> Call:
    """Equal logits, most of them in the first two chunks: a bound that is too low loses some of the last chunk's best."""
    return one_request(torch.zeros(1, 5000), 200, "shared_noise")


def peaked_call() -> Call:
    """The sum is 1 + n 2^-52: the order of its additions shows in the score of the likeliest token."""
    logits = -36 + torch.rand(4, 5000, generator=torch.Generator().manual_seed(9))
    logits[:, 77] = 0
    return one_request(logits, 4, "deterministic")


def missing_call() -> Call:
    """One node is none, since its score is not finite, and the other has three children for a width of eight."""
    args, kwargs = one_request(torch.tensor([[0.0, 1.0, 2.0], [0.5, 0.25, 0.0]]), 8, "shared_noise")
    args[1][1] = torch.inf
    return args, kwargs


def part_call() -> Call:
    """Two rows over a tenth of a vocabulary, whose noise is that of the columns' tokens."""
    (logits, *rest), kwargs = noisy_call()
    ids = 7 + 10 * torch.arange(logits.size(1), dtype=torch.int32)
    return (logits, *rest, ids), kwargs


def agree(call: Call, **how: Any) -> bool:
    args, kwargs = call
    want, got = spec.build_tree.run(*args, **kwargs), emulator.call("build_tree", *args, **kwargs, **how)
    return all(a.shape == b.shape and torch.equal(bits(a), bits(b)) for a, b in zip(want, got, strict=True))


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_equals_specification_on_the_cases(case: Case) -> None:
    assert agree((case.args, case.kwargs))


def test_equals_specification_on_random_frontiers() -> None:
    rng = random.Random(31)
    calls = [random_call(rng) for _ in range(120)]
    assert [i for i, call in enumerate(calls) if not agree(call)] == []


@pytest.mark.parametrize("call", [tied_call, noisy_call, flat_call, peaked_call, missing_call, part_call])
def test_ties_noise_last_bits_and_missing_children(call: Any) -> None:
    assert agree(call())


@pytest.mark.parametrize("rule", ["deterministic", "shared_noise"])
def test_level_after_level(rule: str) -> None:
    """Four levels, each fed with what the one before gave, kernel and specification side by side."""
    vocab, width = 150, 6
    table = 2 * torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(3))
    (_, score, cu_t, position, *law), kwargs = one_request(table[:1], width, rule)
    token = torch.tensor([7], dtype=torch.int32)
    for level in range(4):
        args = (table[token.long()], score, cu_t, position + level, *law)
        assert agree((args, kwargs))
        token, parent, score = (t.flatten() for t in emulator.call("build_tree", *args, **kwargs))
        assert parent.max() < args[0].size(0)
        cu_t = torch.tensor([0, width], dtype=torch.int32)


def test_strided_rows() -> None:
    (logits, *rest), kwargs = noisy_call()
    view = torch.empty(2, 9010)[:, 3:9003].copy_(logits)
    assert agree(((view, *rest), kwargs))
    assert agree(((logits.t().contiguous().t(), *rest), kwargs))
    (logits, *rest, ids), kwargs = part_call()
    assert agree(((logits, *rest, torch.stack([ids, ids], 1)[:, 1]), kwargs))


@pytest.mark.parametrize("order", emulator.ORDERS)
@pytest.mark.parametrize("copies", emulator.COPIES)
def test_every_order_of_threads_with_the_checker(order: str, copies: str) -> None:
    with emulator.schedule(order=order, copies=copies, seed=4):
        assert agree((CASES[0].args, CASES[0].kwargs), checked=True)
        assert agree((CASES[3].args, CASES[3].kwargs), checked=True)
        assert agree((CASES[6].args, CASES[6].kwargs), checked=True)


def test_long_rows_with_the_checker() -> None:
    with emulator.schedule(order="random_warps", seed=3):
        assert agree(noisy_call(), checked=True)


PLANTED = {
    1: noisy_call, 3: flat_call, 5: peaked_call, 21: tied_call, 22: missing_call, 23: missing_call, 24: noisy_call,
    25: part_call, 26: part_call,
}  # fmt: skip


@pytest.mark.parametrize("bug", sorted(PLANTED))
def test_planted_bug_changes_bits(bug: int) -> None:
    assert not agree(PLANTED[bug](), bug=bug)


def test_planted_race_is_found() -> None:
    with pytest.raises(emulator.EmulatorError) as error:
        agree(noisy_call(), bug=4, checked=True)
    assert "race" in error.value.kinds


def test_bytes_read() -> None:
    """Memory is read once; the two further passes over a row are served by L2. The lists of candidates are small."""
    logits = torch.randn(2, 16384, generator=torch.Generator().manual_seed(0))
    args, kwargs = one_request(logits, 16, "shared_noise")
    with emulator.counting() as counters:
        emulator.call("build_tree", *args, **kwargs)
    least = spec.build_tree.cost({"T": 2, "V": 16384}).bytes  # type: ignore[misc]
    assert counters.dram_bytes < 1.01 * least
    assert (
        32 * counters.traffic["logits"].read_sectors <= 3.3 * least
    )  # 0.25: one token a thread is read again


def test_refuses_what_the_specification_refuses() -> None:
    for _, args, kwargs in broken_calls(spec.build_tree):
        want = error_of(lambda args=args, kwargs=kwargs: spec.build_tree.run(*args, **kwargs))
        assert error_of(lambda args=args, kwargs=kwargs: emulator.call("build_tree", *args, **kwargs)) == want
