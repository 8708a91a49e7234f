# SPDX-License-Identifier: Apache-2.0
"""draw_children in Triton, bit for bit: the shared cases, hard rows, planted bugs."""

from __future__ import annotations

import random

import pytest
import torch
from drawn_fuzz import children_call
from emulation import faults, needs_ttsem, same_bits, supported
from torch import Tensor

from pyspec import spec
from pyspec.contract import Case
from pyspec.kernels import draw_children as kernels


def check_bits(args: tuple[Tensor, ...], width: int, rule: str, bug: str = "") -> None:
    want = spec.draw_children.run(*args, width=width, rule=rule)
    for a, b in zip(kernels._launch(args[0], args[1:], width, rule, bug), want, strict=True):
        same_bits(a, b)


@pytest.mark.parametrize("case", supported("draw_children")[:6])
def test_bits(case: Case) -> None:
    check_bits(case.args, **case.kwargs)


def test_hard_rows() -> None:
    rng = random.Random(4)
    for _ in range(6):
        args, kwargs = children_call(rng)
        width = min(kwargs["width"], 5)
        args[1].clamp_(max=width)
        check_bits(args, width, kwargs["rule"])


def call(vocab: int = 256) -> tuple[Tensor, ...]:
    ints = lambda value: torch.full((3,), value, dtype=torch.int32)
    logits = torch.randn(3, vocab, generator=torch.Generator().manual_seed(2))
    return logits, ints(4), torch.ones(3), torch.tensor([5, 6, 7]), ints(0), ints(9), ints(1)


@needs_ttsem
@pytest.mark.parametrize(("bug", "kind"), [("one more", "oob_read"), ("one row", "race")])
def test_planted_faults_are_found(bug: str, kind: str) -> None:
    args = call()
    with faults(kind):
        kernels._launch(args[0], args[1:], 4, "hybrid", bug)


@pytest.mark.parametrize(("bug", "vocab"), [("whole target", 256), ("one number", 4), ("again", 4)])
def test_planted_wrong_draws_are_found(bug: str, vocab: int) -> None:
    check_bits(call(vocab), 4, "without_replacement")
    with pytest.raises(AssertionError):
        check_bits(call(vocab), 4, "without_replacement", bug)
