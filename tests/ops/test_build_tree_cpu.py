# SPDX-License-Identifier: Apache-2.0
"""build_tree on the CPU against its specification, bit for bit, in hard rows, on every instruction set and number of threads."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from contract_tests import needs_native
from torch import Tensor

from pyspec import backends, ops

pytestmark = needs_native
Call = tuple[tuple[Tensor | None, ...], int, str]
SCORES = (0.0, -0.7, -300.0, -1e30, -3e38, -math.inf, math.nan, math.inf)


def rows(kind: str, count: int, vocab: int, g: torch.Generator) -> Tensor:
    """Rows of logits that are hard in one way."""
    x = torch.randn(count, vocab, generator=g)
    return {
        "plain": 3 * x,
        "peaked": 40 * x,
        "flat": torch.zeros(count, vocab),
        "ties": (3 * x).round() / 4,
        "close": 1e-6 * x,
        "wide": 1e4 * x,
        "huge": 1e38 * x,
        "holes": torch.where(x > 0.5, x, -torch.inf),
        "special": torch.where(x > 1, torch.inf, torch.where(x < -1, torch.nan, x)),
        "none": torch.full((count, vocab), -torch.inf),
    }[kind]


KINDS = ("plain", "peaked", "flat", "ties", "close", "wide", "huge", "holes", "special", "none")


def calls() -> Iterator[Call]:
    """Every kind of rows, with and without noise and ids, few children and more than there are."""
    g = torch.Generator().manual_seed(1)
    for n, kind in enumerate(KINDS):
        for vocab, width in ((1, 1), (63, 5), (64, 64), (700, 9), (700, 200), (130, 400)):
            for rule in ("deterministic", "shared_noise"):
                sizes = torch.randint(0, 5, (3,), generator=g)
                cu_t = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]).int()
                t = int(cu_t[-1])
                pick = torch.randint(0, len(SCORES), (t,), generator=g)
                score = torch.tensor(SCORES)[torch.where(torch.rand(t, generator=g) < 0.6, pick % 3, pick)]
                position = torch.randint(0, 5000, (3,), generator=g, dtype=torch.int32)
                temperature = torch.tensor([1.0, 0.3 if n % 2 else 0.0, 2.5])
                seed = torch.randint(-(2**63), 2**63 - 1, (3,), generator=g)
                ids = torch.randperm(4 * vocab, generator=g)[:vocab].sort().values.int() if n % 3 else None
                laws = (cu_t, position, temperature, seed, torch.arange(3).int(), ids)
                yield (rows(kind, t, vocab, g), score, *laws), width, rule


def digest() -> str:
    """Of the bits of all calls."""
    found = hashlib.sha256()
    for args, width, rule in calls():
        for out in ops.build_tree(*args, width=width, rule=rule, backend="cpu"):
            found.update(out.numpy().tobytes())
    return found.hexdigest()


def test_equals_specification() -> None:
    for args, width, rule in calls():
        got = ops.build_tree(*args, width=width, rule=rule, backend="cpu")
        want = ops.build_tree(*args, width=width, rule=rule, backend="spec")
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b), (args[0].shape, width, rule)


def test_threads_and_strides_change_nothing() -> None:
    before, threads = digest(), backends.num_threads()
    try:
        backends.set_num_threads(3)
        assert digest() == before
    finally:
        backends.set_num_threads(threads)
    args, width, rule = next(iter(calls()))
    padded = torch.full((args[0].size(0), 9), math.nan)
    padded[:, 3 : 3 + args[0].size(1)] = args[0]
    view = padded[:, 3 : 3 + args[0].size(1)]
    for a, b in zip(
        ops.build_tree(view, *args[1:], width=width, rule=rule),
        ops.build_tree(*args, width=width, rule=rule),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512", "neon"])
def test_every_instruction_set_gives_the_same_bits(isa: str) -> None:
    env = {**os.environ, "PYSPEC_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    code = "import pyspec, test_build_tree_cpu as t; print(pyspec.backends.native.cpu_isa(), t.digest())"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    if done.returncode and "PYSPEC_ISA" in done.stderr:
        pytest.skip(f"this machine or build has no {isa}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [isa, digest()]
