# SPDX-License-Identifier: Apache-2.0
"""sample in Triton, bit for bit: the shared cases, hard rows, ties at every cut, views, planted bugs."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from emulation import faults, needs_ttsem, same_bits, supported
from linear_family import needs_compiler
from sampling_edges import EDGES
from sampling_fuzz import law_tensors, row
from torch import Tensor

from pyspec import spec
from pyspec.contract import Case
from pyspec.kernels import build_tree, pipeline, verify_tree
from pyspec.kernels import sample as kernels
from pyspec.kernels.aot import compiled


def check_bits(args: tuple[Tensor, ...], num_logprobs: int, with_logprobs: bool = True) -> None:
    got = kernels.sample(*args, num_logprobs=num_logprobs, with_logprobs=with_logprobs)
    want = spec.sample.run(*args, num_logprobs=num_logprobs, with_logprobs=with_logprobs)
    for a, b in zip(got, want, strict=True):
        same_bits(a, b)


def laws(rows: int, **given: float) -> tuple[Tensor, ...]:
    """position, temperature, top_k, top_p, min_p, typical_p, seed, stream of plain sampling, one of them given."""
    plain = {
        "position": 7,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "typical_p": 1.0,
        "seed": 3,
        "stream": 0,
    } | given
    dtypes = {
        "temperature": torch.float32,
        "top_p": torch.float32,
        "min_p": torch.float32,
        "typical_p": torch.float32,
        "seed": torch.int64,
    }
    return tuple(
        torch.full((rows,), value, dtype=dtypes.get(name, torch.int32)) for name, value in plain.items()
    )


@pytest.mark.parametrize("case", [*supported("sample")[:4], supported("sample")[7]])
def test_bits(case: Case) -> None:
    check_bits(case.args, **case.kwargs)


@pytest.mark.parametrize(("vocab", "seed"), [(3, 0), (130, 1), (1100, 2)])
def test_hard_rows(vocab: int, seed: int) -> None:
    """Ties, special values, rows without any finite value; every filter at its limits."""
    rng, rows = random.Random(seed), 8
    logits = torch.stack([row(rng, vocab) for _ in range(rows)])
    laws_ = law_tensors(rng, rows, vocab)
    edited = torch.stack([row(rng, vocab) for _ in range(rows)])
    check_bits((logits, *laws_), min(vocab, 40))
    check_bits((logits[:4], *(law[:4] for law in laws_), edited[:4]), 0, with_logprobs=False)
    check_bits((logits[4:], *(law[4:] for law in laws_), edited[4:]), min(vocab, 5))


def close_sum() -> tuple[Tensor, ...]:
    """Rows whose radius goes by the last bits of a sum in the specification's order."""
    args, _ = EDGES["close typical sum from below"]
    return tuple(arg[:3] for arg in args)


def test_typical_p_where_rounding_decides() -> None:
    check_bits(close_sum(), 0, with_logprobs=False)
    got = kernels._launch(close_sum()[0], close_sum()[1:], 0, "no bound", with_logprobs=False)
    with pytest.raises(AssertionError):
        same_bits(got[0], spec.sample.run(*close_sum())[0])


def test_picks_of_the_raw_row_are_found() -> None:
    logits, edited = torch.zeros(4, 50), torch.zeros(4, 50).index_fill_(1, torch.arange(25, 50), -torch.inf)
    got = kernels._launch(logits, laws(4), 0, "raw row", edited)
    with pytest.raises(AssertionError):
        same_bits(got[0], spec.sample.run(logits, *laws(4), edited)[0])


@pytest.mark.parametrize("top_p", [0.5, 0.25, 0.7])
def test_top_p_between_equal_tokens(top_p: float) -> None:
    """Masses are exact and meet the limit exactly: one token more or less changes what seeds draw."""
    logits = torch.zeros(6, 64)
    logits[3:, ::2] = -1e4
    args = (logits, *laws(6, top_p=top_p))
    args[7].copy_(torch.arange(6))
    check_bits(args, 0)


def test_top_k_cuts_ties_by_id() -> None:
    logits = (torch.randn(8, 300, generator=torch.Generator().manual_seed(0)) * 2).round()
    args = (logits, *laws(8, temperature=3.0))
    args[3].copy_(torch.tensor([1, 2, 3, 10, 50, 100, 299, 300]))
    check_bits(args, 40)


def test_views() -> None:
    g = torch.Generator().manual_seed(4)
    logits = torch.randn(6, 90, generator=g)[::2, 5:70]
    check_bits((logits, *(law[::2] for law in laws(6, top_k=9))), 3)
    turned = torch.randn(65, 3, generator=g).t()
    check_bits((turned, *laws(3, top_p=0.8)), 3)


def test_config() -> None:
    assert pipeline.pick_config(1) == pipeline.Config(256, 2)
    assert pipeline.pick_config(600) == pipeline.Config(1024, 8)
    assert pipeline.pick_config(262144) == pipeline.Config(1024, 8)


@needs_compiler
@pytest.mark.parametrize(
    "module", [kernels, verify_tree, build_tree], ids=lambda module: module.__name__.split(".")[-1]
)
def test_no_multiply_is_fused_into_an_add(module: object) -> None:
    """In float64 the machine code has the specification's steps; left to itself the compiler fuses some."""
    case = next(
        case for case in module.aot_cases() if case.name.split("-")[1] in ("V1024", "nodes", "scores")
    )
    options = dict(case.options)
    assert "fma.rn.f64" not in compiled(case, 90).asm["ptx"]
    assert (
        "fma.rn.f64" in compiled(replace(case, options=options | {"enable_fp_fusion": True}), 90).asm["ptx"]
    )


@needs_ttsem
@pytest.mark.parametrize(("bug", "kind"), [("one more", "oob_read"), ("one row", "race")])
def test_planted_bugs_are_found(bug: str, kind: str) -> None:
    """256 tokens fill the block, so that one more is a read of its own."""
    with faults(kind):
        kernels._launch(torch.randn(3, 256), laws(3), 2, bug)


def test_noise_of_another_position_is_found() -> None:
    logits = torch.zeros(4, 50)
    got = kernels._launch(logits, laws(4), 0, "next position")
    with pytest.raises(AssertionError):
        same_bits(got[0], spec.sample.run(logits, *laws(4))[0])
