# SPDX-License-Identifier: Apache-2.0
"""CUDA w8a8_linear under the emulator: the specification's bits, extremes, schedules, planted bugs, traffic."""

from __future__ import annotations

import pytest
import torch
from contract_tests import error_of
from cuda_emulator import emulator
from emulated_calls import all_same, by_specification, emulated, is_the_same_strided
from linear_checks import (
    caught_by,
    counted,
    is_the_same_in_every_schedule,
    is_the_same_unaligned,
    output,
)

from pyspec import spec
from pyspec.contract import Case

OP = "w8a8_linear"
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def case_of(m: int, n: int, k: int, out_dtype: torch.dtype = F32) -> Case:
    g = torch.Generator().manual_seed(m + n + k)
    x, weight = (torch.randint(-128, 128, (r, k), generator=g).to(torch.int8) for r in (m, n))
    scales = (torch.rand(r, generator=g) * 0.01 for r in (m, n))
    return Case(
        f"M{m}-N{n}-K{k}-{out_dtype}".replace("torch.", ""), (x, weight, *scales), {"out_dtype": out_dtype}
    )


CASES = [
    *spec.w8a8_linear.cases(),
    *(case_of(m, n, k) for m, n, k in [(1, 4100, 64), (9, 8200, 32), (65, 17, 1000), (2, 16, 4097)]),
]


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES])
def test_equals_the_specification(case: Case) -> None:
    assert all_same(emulated(OP, case), by_specification(OP, case))


@pytest.mark.parametrize("values", [(-128, -128), (-128, 127), (127, -128), (127, 127)])
def test_extremes_do_not_saturate(values: tuple[int, int]) -> None:
    k = 4097
    x, weight = (torch.full((rows, k), v, dtype=torch.int8) for rows, v in zip((2, 5), values, strict=True))
    out = emulator.call(OP, x, weight, torch.ones(2), torch.ones(5), out_dtype=F32)
    assert torch.equal(out, torch.full((2, 5), float(values[0] * values[1] * k)))


def test_rows_do_not_depend_on_the_batch() -> None:
    """Nothing is rounded before the whole sum, so tiles could only mix rows up: each row alone."""
    case = case_of(70, 33, 300, BF16)
    x, weight, x_scale, w_scale = case.args
    whole = output(OP, case)
    for m in range(70):
        row = emulator.call(OP, x[m : m + 1], weight, x_scale[m : m + 1], w_scale, out_dtype=BF16)
        assert torch.equal(row[0], whole[m])


@pytest.mark.parametrize("m", [2, 10])
def test_every_schedule(m: int) -> None:
    assert is_the_same_in_every_schedule(OP, case_of(m, 20, 7 * 512 + 80))


def test_views_and_unaligned_rows() -> None:
    assert is_the_same_strided(OP, case_of(3, 20, 96))
    assert is_the_same_unaligned(OP, case_of(3, 20, 96))


def test_refuses_as_the_specification_does() -> None:
    ones = torch.ones(1)
    for k, dtype in ((8, torch.int32), (1 << 17, F32)):
        x = torch.zeros(1, k, dtype=torch.int8)
        want = error_of(lambda x=x, d=dtype: spec.w8a8_linear.run(x, x, ones, ones, out_dtype=d))
        assert error_of(lambda x=x, d=dtype: emulator.call(OP, x, x, ones, ones, out_dtype=d)) == want


BUGS = {
    1: (case_of(9, 33, 1600), "cp.async"), 6: (case_of(9, 33, 4000), "race"), 11: (case_of(9, 33, 300), "result"),
    12: (case_of(3, 20, 64), "result"), 13: (case_of(3, 20, 64, BF16), "result"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug: int) -> None:
    case, kind = BUGS[bug]
    assert kind in caught_by(OP, case, bug)


@pytest.mark.parametrize("m", [1, 8, 64])
def test_traffic(m: int) -> None:
    n, k = 1024, 1024
    case = case_of(m, n, k, F16)
    counters = counted(OP, case)
    assert counters.dram_bytes <= 1.05 * (n * k + m * (k + 2 * n) + 4 * (m + n))
    assert counters.traffic["weight"].read_sectors * 32 == n * k
    assert counters.useful_mma_share >= 0.99 * min(m, 8) / 8  # some words of x are zero
    assert (
        sum(line.extra for place, line in counters.shared.items() if "w8a8_linear.cu" in place.split()[0])
        == 0
    )
    assert output(OP, case).dtype == F16
