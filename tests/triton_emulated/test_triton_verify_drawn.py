# SPDX-License-Identifier: Apache-2.0
"""verify_drawn in Triton, bit for bit: the shared cases, hard trees, planted bugs."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from drawn_fuzz import verify_call
from emulation import faults, needs_ttsem, same_bits, supported

from pyspec import spec
from pyspec.contract import Case
from pyspec.kernels import verify_drawn as kernels
from pyspec.spec.verify_drawn import example


def launch(case: Case, bug: str = "") -> tuple[Any, ...]:
    logits, tokens, parents, cu_t, drawn, draft, draft_row, heat, step, *laws = case.args
    edited = laws[7] if len(laws) > 7 else None
    kwargs = {"walk": "traversal", "num_logprobs": 0, "with_logprobs": True, **case.kwargs}
    return kernels._launch(
        logits, logits if edited is None else edited, draft, (tokens, parents, cu_t, drawn, draft_row),
        (heat, *laws[:5], step, *laws[5:7]), walk=kwargs["walk"], max_path=kwargs["max_path"],
        num=kwargs["num_logprobs"], with_logprobs=kwargs["with_logprobs"], bug=bug,
    )  # fmt: skip


def check_bits(case: Case, bug: str = "") -> None:
    for a, b in zip(launch(case, bug), spec.verify_drawn.run(*case.args, **case.kwargs), strict=True):
        same_bits(a, b)


@pytest.mark.parametrize("case", supported("verify_drawn", kernels.limit)[:7])
def test_bits(case: Case) -> None:
    check_bits(case)


@pytest.mark.parametrize("seed", range(6))
def test_hard_trees(seed: int) -> None:
    args, kwargs = verify_call(random.Random(seed))
    check_bits(Case(str(seed), args, kwargs))


def deep() -> Case:
    return example(((2, 2, 1), (2, 1, 1)), 256, 0, "without_replacement", "traversal", 0)


@needs_ttsem
@pytest.mark.parametrize(("bug", "kind"), [("one more", "oob_read"), ("one row", "race")])
def test_planted_faults_are_found(bug: str, kind: str) -> None:
    with faults(kind):
        launch(deep(), bug)


@pytest.mark.parametrize("bug", ["takes nothing", "one number"])
def test_planted_wrong_walks_are_found(bug: str) -> None:
    differ = 0
    for seed in range(2):
        case = example(((2, 2, 1), (2, 1, 1)), 24, 0, "without_replacement", "traversal", seed)
        check_bits(case)
        pairs = zip(launch(case, bug), launch(case), strict=True)
        differ += any(not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)
    assert differ


def test_memory_is_bounded() -> None:
    assert kernels.limit({"T": 64, "V": 151936}) is None
    assert "must be at most 2^30" in str(kernels.limit({"T": 600, "V": 151936}))
