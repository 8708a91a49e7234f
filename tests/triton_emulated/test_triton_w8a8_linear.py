# SPDX-License-Identifier: Apache-2.0
"""w8a8_linear in Triton: bits of the specification, tiles, extremes, views, machine code, planted bugs."""

from __future__ import annotations

import pytest
import torch
from emulation import faults, needs_ttsem, same_bits, supported
from linear_family import check_instructions, needs_compiler
from torch import Tensor

from pyspec import spec
from pyspec.contract import Case
from pyspec.kernels import w8a8_linear as kernels

Config = kernels.Config


def problem(m: int, n: int, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(m + n + k)
    x, weight = (torch.randint(-128, 128, (rows, k), generator=g).to(torch.int8) for rows in (m, n))
    return x, weight, torch.rand(m, generator=g) * 0.01, torch.rand(n, generator=g) * 0.01


@pytest.mark.parametrize("case", supported("w8a8_linear"))
def test_bits(case: Case) -> None:
    same_bits(
        kernels.w8a8_linear(*case.args, **case.kwargs), spec.w8a8_linear.reference(*case.args, **case.kwargs)
    )


@pytest.mark.parametrize(
    "c", [Config(16, 16, 128, 4, 4), Config(32, 64, 128, 4, 4), Config(128, 128, 128, 8, 3)], ids=str
)
def test_every_tile(c: kernels.Config) -> None:
    args = problem(21, 70, 200)
    got = kernels._launch(*args, torch.float32, c)
    same_bits(got, spec.w8a8_linear.reference(*args, out_dtype=torch.float32))


def test_largest_sums() -> None:
    """All products 2^14 over K = 1024 k: 2^24 + 2^14 and beyond are rounded once, to even."""
    x, weight = torch.full((2, 1041), -128, dtype=torch.int8), torch.full((3, 1041), -128, dtype=torch.int8)
    weight[1, 0], weight[2, 1] = 1, -127
    args = x, weight, torch.ones(2), torch.ones(3)
    got = kernels.w8a8_linear(*args, out_dtype=torch.float32)
    same_bits(got, spec.w8a8_linear.reference(*args, out_dtype=torch.float32))


def test_views() -> None:
    x, weight, x_scale, w_scale = problem(6, 40, 50)
    odd = x.t().contiguous().t()[::2, 3:], weight[:, 3:], x_scale[::2], w_scale.flip(0)
    same_bits(
        kernels.w8a8_linear(*odd, out_dtype=torch.bfloat16),
        spec.w8a8_linear.reference(*odd, out_dtype=torch.bfloat16),
    )


def test_config() -> None:
    assert kernels.pick_config(1, 576) == Config(16, 16, 128, 4, 4)
    assert kernels.pick_config(64, 49152) == Config(64, 64, 128, 4, 4)
    assert kernels.pick_config(65, 576) == Config(128, 128, 128, 8, 3)


@needs_compiler
def test_machine_code() -> None:
    cases = kernels.aot_cases()
    check_instructions(cases, "w8a8_linear-M1-N576", imma=1)
    check_instructions(cases, "w8a8_linear-M512-N4096", wgmma=4, tcgen05=4)


@needs_ttsem
@pytest.mark.parametrize(("bug", "kind"), [("no mask", "oob_read"), ("one tile", "race")])
def test_planted_bugs_are_found(bug: str, kind: str) -> None:
    with faults(kind):
        kernels._launch(*problem(3, 40, 130), torch.float32, Config(16, 16, 128, 4, 4), bug)


def test_a_rounded_sum_is_found() -> None:
    args = problem(3, 20, 130)
    got = kernels._launch(*args, torch.float32, kernels.pick_config(3, 20), "rounded sum")
    with pytest.raises(AssertionError):
        same_bits(got, spec.w8a8_linear.reference(*args, out_dtype=torch.float32))
