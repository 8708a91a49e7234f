# SPDX-License-Identifier: Apache-2.0
"""edit_logits in Triton, bit for bit: the shared cases, hard calls, a long history and path, planted bugs."""

from __future__ import annotations

import random

import pytest
import torch
from emulation import faults, needs_ttsem, same_bits, supported
from test_edit_logits import fuzz_call, ints, plain_call

from pyspec import spec
from pyspec.contract import Case
from pyspec.kernels import edit_logits as kernels

NAMES = [term.name for term in spec.edit_logits.inputs]


@pytest.mark.parametrize("case", supported("edit_logits"))
def test_bits(case: Case) -> None:
    same_bits(kernels.edit_logits(*case.args), spec.edit_logits.run(*case.args))


def test_hard_calls() -> None:
    rng = random.Random(5)
    for _ in range(12):
        args = fuzz_call(rng)
        same_bits(kernels.edit_logits(*args), spec.edit_logits.run(*args))


def chain() -> tuple[object, ...]:
    """Tokens again and again along a path over two parts of a row, some of them in a history of two blocks."""
    n, vocab = 9, 4100
    history = torch.cat([ints(3, 4099), torch.arange(10, 610).int()])
    call = plain_call(
        tuple(range(-1, n - 1)), vocab, logits=torch.randn(n, vocab), history=history,
        tokens=ints(1, 3, 4099, 700)[torch.arange(n) % 4], history_count=torch.arange(602).int() % 7,
        repetition=torch.tensor([1.3]), presence=torch.tensor([0.2]), frequency=torch.tensor([0.7]),
        bias_token=ints(3, 4098), bias=torch.ones(2),
    )  # fmt: skip
    return tuple(call[name] for name in NAMES)


def test_long_histories_and_paths() -> None:
    args = chain()
    same_bits(kernels.edit_logits(*args), spec.edit_logits.run(*args))


@needs_ttsem
@pytest.mark.parametrize(("bug", "kind"), [("no mask", "oob_read"), ("one row", "race")])
def test_planted_faults_are_found(bug: str, kind: str) -> None:
    with faults(kind):
        kernels._launch(*chain(), bug=bug)


def test_a_path_that_forgets_the_history_is_found() -> None:
    args = chain()
    with pytest.raises(AssertionError):
        same_bits(kernels._launch(*args, bug="path alone"), spec.edit_logits.run(*args))
