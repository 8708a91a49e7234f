# SPDX-License-Identifier: Apache-2.0
"""edit_logits: bits on every instruction set, the state of every node's path, edges of the formula, views, and refusals."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import Any

import pytest
import torch
from contract_tests import error_of, needs_native
from sampling_fuzz import bits, row
from torch import Tensor

from pyspec import ops, spec
from pyspec.backends import native
from pyspec.contract import Case

BACKENDS = ["spec", pytest.param("cpu", marks=needs_native)]
HEAVY = [1e-30, 0.5, 1.0, 1.3, 1e30]


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def plain_call(parents: tuple[int, ...] = (-1,), vocab: int = 8, **given: Any) -> dict[str, Any]:
    """One request that edits nothing, some of its arguments given. Without `logits`, all are 1."""
    n = len(parents)
    call = {
        "logits": torch.ones(n, vocab), "tokens": torch.arange(n).int(), "parents": ints(*parents), "cu_t": ints(0, n),
        "repetition": torch.ones(1), "presence": torch.zeros(1), "frequency": torch.zeros(1), "history": ints(),
        "history_count": ints(), "bias_token": ints(), "bias": torch.zeros(0), "mask": None,
        "mask_row": torch.full((n,), -1, dtype=torch.int32), **given,
    }  # fmt: skip
    for offsets, entries in (("cu_history", "history"), ("cu_bias", "bias_token")):
        call.setdefault(offsets, ints(0, call[entries].numel()))
    return call


def fuzz_call(rng: random.Random) -> tuple[Any, ...]:
    """Random trees of few or many tokens; hard logits, penalties that overflow or vanish, masks of every density."""
    vocab, batch = rng.choice([1, 2, 31, 32, 33, 63, 64, 65, 100, 300]), rng.randint(0, 4)
    sizes = [rng.choice([0, 1, 2, 9, 25]) for _ in range(batch)]
    nodes, masks = sum(sizes), rng.randint(0, 3)
    g = torch.Generator().manual_seed(rng.randrange(2**31))
    floats = lambda values, n: torch.tensor([rng.choice(values) for _ in range(n)], dtype=torch.float32)
    offsets = lambda parts: ints(*(sum(map(len, parts[:i])) for i in range(len(parts) + 1)))
    some = lambda: torch.randperm(vocab, generator=g)[: rng.randint(0, vocab)].tolist()
    history, biased = [some() for _ in sizes], [some() for _ in sizes]
    flat = lambda parts: ints(*(x for part in parts for x in part))
    words = torch.randint(-(2**31), 2**31, (masks, -(-vocab // 32)), generator=g).int()
    words[:1] = rng.choice([0, -1])
    return (
        torch.stack([row(rng, vocab) for _ in range(nodes)]) if nodes else torch.empty(0, vocab),
        ints(*(rng.randrange(min(vocab, 5)) for _ in range(nodes))),
        ints(*(rng.randint(max(0, i - 3), i - 1) if i else -1 for size in sizes for i in range(size))),
        ints(*(sum(sizes[:b]) for b in range(batch + 1))),
        floats(HEAVY, batch), floats([0.0, -0.0, 0.7, -3e38, 1e-40], batch), floats([0.0, -0.0, 0.1, 3e38, -2.5], batch),
        flat(history), ints(*(rng.choice([0, 1, 7, 2**31 - 1]) for part in history for _ in part)), offsets(history),
        flat(biased), floats([0.0, 1.5, -torch.inf, 3e38, -1e-39], sum(map(len, biased))), offsets(biased),
        words if masks or rng.random() < 0.5 else None, ints(*(rng.randint(-1, masks - 1) for _ in range(nodes))),
    )  # fmt: skip


def differences(calls: int, seed: int) -> list[str]:
    """Random calls in which kernel and specification differ in any bit."""
    rng, found = random.Random(seed), []
    for i in range(calls):
        args = fuzz_call(rng)
        want, got = spec.edit_logits.run(*args), torch.ops.pyspec.edit_logits(*args)
        if want.shape != got.shape or not torch.equal(bits(want), bits(got)):
            found.append(f"call {i} of seed {seed}: {(bits(want) != bits(got)).nonzero().tolist()}")
    return found


@needs_native
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in spec.edit_logits.cases()])
def test_kernel_equals_specification_on_the_cases(case: Case) -> None:
    want, got = spec.edit_logits.run(*case.args), torch.ops.pyspec.edit_logits(*case.args)
    assert torch.equal(bits(want), bits(got))


@needs_native
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512", "neon"])
def test_every_instruction_set_equals_specification(isa: str) -> None:
    env = {**os.environ, "PYSPEC_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, __file__, "200", "3"], env=env, capture_output=True, text=True)
    if "PYSPEC_ISA: value must be" in run.stderr:
        pytest.skip(f"this machine or build has no {isa}")
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_node_has_the_state_of_its_own_path(backend: str) -> None:
    """Root 7, its children 1 and 2; below 1 another 1 and a 3. Frequency 1 and history 1 (twice in the output), 4 (prompt)."""
    call = plain_call(
        (-1, 0, 0, 1, 1, 3), tokens=ints(7, 1, 2, 1, 3, 1), frequency=torch.ones(1), history=ints(1, 4),
        history_count=ints(2, 0),
    )  # fmt: skip
    counts = 1 - ops.edit_logits(**call, backend=backend)
    assert counts.tolist() == [
        [0, 2, 0, 0, 0, 0, 0, 0],  # the root is in the history if anywhere
        [0, 3, 0, 0, 0, 0, 0, 0],
        [0, 2, 1, 0, 0, 0, 0, 0],
        [0, 4, 0, 0, 0, 0, 0, 0],
        [0, 3, 0, 1, 0, 0, 0, 0],
        [0, 5, 0, 0, 0, 0, 0, 0],
    ]
    call |= {"frequency": torch.zeros(1), "presence": torch.full((1,), 0.5)}
    assert ops.edit_logits(**call, backend=backend)[4].tolist() == [1, 0.5, 1, 0.5, 1, 1, 1, 1]
    call |= {"presence": torch.zeros(1), "repetition": torch.full((1,), 2.0)}
    assert ops.edit_logits(**call, backend=backend)[4].tolist() == [1, 0.5, 1, 0.5, 0.5, 1, 1, 1]
    assert ops.edit_logits(**call, backend=backend)[0].tolist() == [1, 0.5, 1, 1, 0.5, 1, 1, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_path_brings_back_what_the_history_alone_sends_below_every_float(backend: str) -> None:
    call = plain_call(
        (-1, 0), logits=torch.full((2, 4), -4.0), tokens=ints(0, 2), repetition=torch.full((1,), 1e38),
        frequency=torch.full((1,), -3e38), history=ints(2), history_count=ints(0),
    )  # fmt: skip
    assert ops.edit_logits(**call, backend=backend)[:, 2].tolist() == [-torch.inf, pytest.approx(-1e38)]
    call |= {"mask": ints(0b1011).view(1, 1), "mask_row": ints(0, 0)}
    assert ops.edit_logits(**call, backend=backend)[:, 2].tolist() == [-torch.inf, -torch.inf]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_chain_has_the_states_of_plain_decoding(backend: str) -> None:
    """Row i of a chain is the row of a single node whose history holds the tokens before it."""
    rng, vocab, n = random.Random(3), 50, 30
    logits = torch.stack([row(rng, vocab) for _ in range(n)])
    tokens = [rng.randrange(9) for _ in range(n)]
    laws = {
        "repetition": torch.tensor([1.7]),
        "presence": torch.tensor([0.3]),
        "frequency": torch.tensor([0.1]),
    }
    prompt = {3: 0, 40: 0}
    state = lambda seen: {"history": ints(*seen), "history_count": ints(*seen.values())}
    seen = prompt | {tokens[0]: 1}
    chain = plain_call(
        tuple(range(-1, n - 1)), vocab, logits=logits, tokens=ints(*tokens), **laws, **state(seen)
    )
    edited = ops.edit_logits(**chain, backend=backend)
    for i in range(n):
        if i:
            seen[tokens[i]] = seen.get(tokens[i], 0) + 1
        alone = plain_call(
            (-1,), vocab, logits=logits[i : i + 1], tokens=ints(tokens[i]), **laws, **state(seen)
        )
        assert torch.equal(bits(edited[i]), bits(ops.edit_logits(**alone, backend=backend)[0]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_formula_in_its_order(backend: str) -> None:
    logits = torch.tensor([[3.0, -3.0, 0.0, 3.0, 1e-40, torch.inf, torch.nan, 2.0]])
    call = plain_call(
        logits=logits, repetition=torch.tensor([2.0]), presence=torch.tensor([0.25]), frequency=torch.tensor([0.5]),
        history=torch.arange(7).int(), history_count=ints(0, 2, 1, 3, 0, 1, 1), bias_token=ints(7, 3, 1),
        bias=torch.tensor([1.0, -torch.inf, 0.5]),
    )  # fmt: skip
    out = ops.edit_logits(**call, backend=backend)[0]
    assert out[:6].tolist() == [1.5, -6 - 1 - 0.25 + 0.5, -0.75, -torch.inf, 0, torch.inf]
    assert out[6].isnan()
    assert out[7] == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_allow_by_bits_and_ignore_those_beyond_the_vocabulary(backend: str) -> None:
    vocab = 70
    words = torch.tensor([[1 << 31, -1, ~(1 << 5)], [0, 0, 0]], dtype=torch.int64).int()
    call = plain_call(
        (-1, 0, 0), vocab, mask=words, mask_row=ints(0, -1, 1), bias_token=ints(0, 31), bias=torch.ones(2)
    )
    out = ops.edit_logits(**call, backend=backend)
    assert (out[0] > -torch.inf).nonzero().flatten().tolist() == [31, *range(32, 69)]
    assert out[0, 31] == 2
    assert out[1].tolist() == [2 if x in (0, 31) else 1 for x in range(vocab)]
    assert (out[2] == -torch.inf).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_nothing_touches_is_copied_bit_for_bit(backend: str) -> None:
    logits = torch.tensor([[-0.0, 1e-45, torch.nan, -torch.inf, 0.1]]).repeat(3, 1)
    call = plain_call((-1, 0, 1), 5, logits=logits, history=ints(0, 1, 2), history_count=ints(1, 1, 1))
    out = ops.edit_logits(**call, backend=backend)
    assert torch.equal(out.view(torch.int32), logits.view(torch.int32))
    assert out.data_ptr() != logits.data_ptr()


@needs_native
def test_threads_views_and_neighbours_do_not_matter() -> None:
    args = next(args for args in map(fuzz_call, map(random.Random, range(99))) if args[0].size(0) > 40)
    want, before = spec.edit_logits.run(*args), native.num_threads()
    wide = torch.full((args[0].size(0), args[0].size(1) + 5), 7.0)
    view = wide[:, 3:-2].copy_(args[0])
    for threads in (1, 3):
        native.set_num_threads(threads)
        for logits in (args[0], view, args[0].t().contiguous().t()):
            assert torch.equal(bits(torch.ops.pyspec.edit_logits(logits, *args[1:])), bits(want))
    native.set_num_threads(before)
    assert (wide[:, :3] == 7).all()
    assert (wide[:, -2:] == 7).all()


def test_requests_do_not_depend_on_the_batch() -> None:
    args = next(args for args in map(fuzz_call, map(random.Random, range(99))) if args[4].numel() == 4)
    logits, tokens, parents, cu_t, *laws = args[:7]
    mask, mask_row, whole = args[13], args[14], ops.edit_logits(*args)
    for b in range(4):
        nodes = slice(int(cu_t[b]), int(cu_t[b + 1]))
        own = [law[b : b + 1] for law in laws]
        for first in (7, 10):  # the history, the biases
            ids, values, cu = args[first : first + 3]
            part = slice(int(cu[b]), int(cu[b + 1]))
            own += [ids[part], values[part], cu[b : b + 2] - cu[b]]
        trees = logits[nodes], tokens[nodes], parents[nodes], cu_t[b : b + 2] - cu_t[b]
        assert torch.equal(bits(ops.edit_logits(*trees, *own, mask, mask_row[nodes])), bits(whole[nodes]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": ints(0, 8)}, "tokens[1] must be in [0, 8), got 8"),
        ({"parents": ints(-1, 1)}, "parents[1] must be in [0, 1), got 1"),
        ({"cu_t": ints(0, 1)}, "cu_t[1] must be 2, got 1"),
        ({"repetition": torch.zeros(1)}, "repetition[0] must be finite and >= 2^-126, got 0"),
        ({"repetition": torch.tensor([torch.inf])}, "repetition[0] must be finite and >= 2^-126, got inf"),
        ({"presence": torch.tensor([torch.nan])}, "presence[0] must be finite, got nan"),
        ({"frequency": torch.tensor([-torch.inf])}, "frequency[0] must be finite, got -inf"),
        ({"history": ints(3, 8, 4)}, "history[1] must be in [0, 8), got 8"),
        ({"history": ints(3, 4, 4)}, "history[1] must be once in its request, got 4"),
        ({"history_count": ints(0, 0, -1)}, "history_count[2] must be >= 0, got -1"),
        ({"cu_history": ints(0, 2)}, "cu_history[1] must be 3, got 2"),
        ({"bias_token": ints(1, -1)}, "bias_token[1] must be in [0, 8), got -1"),
        ({"bias_token": ints(5, 5)}, "bias_token[0] must be once in its request, got 5"),
        ({"bias": torch.tensor([0.0, torch.inf])}, "bias[1] must be below inf, not NaN, got inf"),
        ({"bias": torch.tensor([torch.nan, 0.0])}, "bias[0] must be below inf, not NaN, got nan"),
        ({"cu_bias": ints(1, 2)}, "cu_bias[0] must be 0, got 1"),
        ({"mask_row": ints(-1, 1)}, "mask_row[1] must be in [-1, 1), got 1"),
        ({"mask_row": ints(-2, 0)}, "mask_row[0] must be in [-1, 1), got -2"),
        ({"mask_row": ints(0, -1), "mask": None}, "mask_row[0] must be in [-1, 0), got 0"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_values_are_refused(change: dict[str, Any], message: str, backend: str) -> None:
    call = plain_call(
        (-1, 0), history=ints(3, 5, 4), history_count=ints(0, 1, 2), bias_token=ints(1, 2), bias=torch.zeros(2),
        mask=ints(-1)[None],
    )  # fmt: skip
    error = error_of(lambda: ops.edit_logits(**{**call, **change}, backend=backend))
    assert error == (ValueError, f"edit_logits: {message}")


if __name__ == "__main__":
    failures = differences(int(sys.argv[1]), int(sys.argv[2]))
    print("\n".join(failures[:5]))
    sys.exit(bool(failures))
