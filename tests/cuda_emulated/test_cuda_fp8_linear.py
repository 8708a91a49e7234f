# SPDX-License-Identifier: Apache-2.0
"""CUDA fp8_linear under the emulator: all 256 weights, three granularities, rows alone, schedules, planted bugs, traffic."""

from __future__ import annotations

import pytest
import torch
from contract_tests import error_of
from cuda_emulator import emulator
from emulated_calls import is_the_same_strided
from linear_checks import (
    UNIT,
    caught_by,
    counted,
    error_bound,
    is_the_same_in_every_schedule,
    is_the_same_unaligned,
    output,
    relative_error,
    rows_are_independent,
)

from pyspec import spec
from pyspec.contract import Case
from pyspec.spec.fp8_linear import dequantize, scale_shape

OP = "fp8_linear"
F32, BF16, F8 = torch.float32, torch.bfloat16, torch.float8_e4m3fn
GRANULARITIES = ("tensor", "channel", "block")


def case_of(m: int, n: int, k: int, granularity: str, x_dtype: torch.dtype = F32) -> Case:
    g = torch.Generator().manual_seed(m + 7 * n + 31 * k)
    x, weight = torch.randn(m, k, generator=g).to(x_dtype), torch.randn(n, k, generator=g).to(F8)
    scale = torch.rand(scale_shape(n, k, granularity), generator=g)
    name = f"{granularity}-M{m}-N{n}-K{k}-{x_dtype}".replace("torch.", "")
    return Case(name, (x, weight, scale), {"granularity": granularity})


CASES = [
    *spec.fp8_linear.cases(),
    *(case_of(m, n, k, granularity, x_dtype) for m, n, k in [(2, 150, 272), (17, 40, 1000), (65, 16, 130)]
      for granularity in GRANULARITIES for x_dtype in (F32, BF16)),
]  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES])
def test_error_is_within_its_bound(case: Case) -> None:
    x, weight, scale = case.args
    dense = dequantize(weight, scale, case.kwargs["granularity"])
    assert relative_error(output(OP, case), x, dense) <= error_bound(x) + x.size(1) / 32 * UNIT


def test_every_weight_is_exact() -> None:
    """All 256 e4m3 values, each alone in its channel, times bf16 ones: no bit differs, NaN is NaN."""
    values = torch.arange(256, dtype=torch.uint8).view(F8)
    weight = torch.zeros(256, 32, dtype=F8)
    weight[torch.arange(256), torch.arange(256) % 32] = values
    out = output(
        OP, Case("all", (torch.ones(2, 32).to(BF16), weight, torch.ones(1, 1)), {"granularity": "tensor"})
    )
    nan = values.float().isnan()
    assert nan.sum() == 2
    assert torch.equal(out[1, ~nan], values.float()[~nan])
    assert out[:, nan].isnan().all()


@pytest.mark.parametrize("granularity", ["channel", "block"])
@pytest.mark.parametrize("x_dtype", [F32, BF16])
def test_rows_do_not_depend_on_the_batch(granularity: str, x_dtype: torch.dtype) -> None:
    assert rows_are_independent(OP, case_of(70, 33, 300, granularity, x_dtype))
    assert rows_are_independent(OP, case_of(9, 4100, 64, granularity, x_dtype))


@pytest.mark.parametrize("m", [2, 10])
def test_every_schedule(m: int) -> None:
    """More stages than a ring has, for one warp more than for the others."""
    assert is_the_same_in_every_schedule(OP, case_of(m, 20, 7 * 512 + 80, "block"))


def test_views_and_unaligned_rows() -> None:
    case = case_of(3, 20, 96, "channel")
    assert is_the_same_strided(OP, case)
    assert is_the_same_unaligned(OP, case)


@pytest.mark.parametrize(
    ("shape", "granularity"), [((1, 1), "row"), ((1, 1), "channel"), ((130, 1), "tensor"), ((1, 3), "block")]
)
def test_refuses_as_the_specification_does(shape: tuple[int, int], granularity: str) -> None:
    args = torch.zeros(2, 257), torch.zeros(130, 257).to(F8), torch.zeros(shape)
    want = error_of(lambda: spec.fp8_linear.run(*args, granularity=granularity))
    assert error_of(lambda: emulator.call(OP, *args, granularity=granularity)) == want


def with_extremes(case: Case) -> Case:
    """Subnormals, and a NaN in channel 3."""
    weight = case.args[1]
    weight[0] = torch.full_like(weight[0], 2.0**-9)
    weight[3, 7] = torch.nan
    return case


BUGS = {
    2: case_of(9, 33, 1600, "channel"), 4: case_of(9, 33, 1600, "channel"), 11: case_of(3, 150, 300, "block"),
    12: with_extremes(case_of(3, 20, 64, "tensor")), 13: case_of(3, 20, 64, "tensor"),
    14: with_extremes(case_of(3, 20, 64, "tensor")),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug: int) -> None:
    assert ("race" if bug == 2 else "result") in caught_by(OP, BUGS[bug], bug)


@pytest.mark.parametrize("m", [1, 8, 64])
def test_traffic(m: int) -> None:
    n, k = 1024, 1024
    counters = counted(OP, case_of(m, n, k, "block"))
    assert counters.dram_bytes <= 1.05 * (n * k + 4 * m * (k + n))
    assert counters.traffic["weight"].read_sectors * 32 == n * k
    assert counters.useful_mma_share == min(m, 8) / 8
    assert (
        sum(line.extra for place, line in counters.shared.items() if "fp8_linear.cu" in place.split()[0]) == 0
    )
