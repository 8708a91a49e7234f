# SPDX-License-Identifier: Apache-2.0
"""CUDA linear under the emulator: errors, rows alone, schedules, planted bugs, traffic; the launch choice of the linear family."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from cuda_emulator import build
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

OP = "linear"
F32, BF16 = torch.float32, torch.bfloat16


def case_of(
    m: int, n: int, k: int, dtype: torch.dtype, x_dtype: torch.dtype = F32, *, bias: bool = True
) -> Case:
    g = torch.Generator().manual_seed(m + 7 * n + 31 * k)
    x, weight = torch.randn(m, k, generator=g).to(x_dtype), torch.randn(n, k, generator=g).to(dtype)
    name = f"M{m}-N{n}-K{k}-{dtype}-{x_dtype}".replace("torch.", "")
    return Case(name, (x, weight, torch.randn(n, generator=g) if bias else None))


CASES = [
    *spec.linear.cases(),
    *(case_of(m, n, k, dtype, x_dtype) for m, n, k in [(2, 5, 33), (17, 40, 96), (65, 16, 130), (3, 4099, 40)]
      for dtype in (F32, BF16) for x_dtype in (F32, BF16)),
]  # fmt: skip


def bound_of(case: Case) -> float:
    x, weight, _ = case.args
    chains = (x.size(1) / 32 + 8) * UNIT  # of f32: a lane's sum, then a butterfly
    return (chains if weight.dtype == F32 else error_bound(x)) + UNIT  # and the bias


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES])
def test_error_is_within_its_bound(case: Case) -> None:
    x, weight, bias = case.args
    dense, rows = weight.double(), x
    if bias is not None:  # as one more k
        dense = torch.cat([dense, bias.double()[:, None]], dim=1)
        rows = torch.cat([x, x.new_ones(x.size(0), 1)], dim=1)
    out = output(OP, case)
    assert out.dtype == F32
    assert relative_error(out, rows, dense) <= bound_of(case)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("x_dtype", [F32, BF16])
def test_rows_do_not_depend_on_the_batch(dtype: torch.dtype, x_dtype: torch.dtype) -> None:
    assert rows_are_independent(OP, case_of(70, 33, 200, dtype, x_dtype))
    assert rows_are_independent(OP, case_of(9, 4100, 64, dtype, x_dtype))


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_every_schedule(dtype: torch.dtype) -> None:
    """More stages than a ring has, for one warp more than for the others."""
    assert is_the_same_in_every_schedule(OP, case_of(10, 20, 7 * 256 + 48, dtype))
    assert is_the_same_in_every_schedule(OP, case_of(2, 20, 7 * 256 + 48, dtype))


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_views_and_unaligned_rows(dtype: torch.dtype) -> None:
    assert is_the_same_strided(OP, case_of(3, 20, 96, dtype))
    assert is_the_same_unaligned(OP, case_of(3, 20, 96, dtype))


def test_infinity_and_nan_stay_in_their_rows() -> None:
    case = case_of(3, 20, 64, BF16)
    case.args[0][1, 5] = torch.nan
    nan = output(OP, case).isnan()
    assert nan[1].all()
    assert not nan[[0, 2]].any()


SMALL = case_of(9, 33, 2112, BF16)
BUGS = {
    1: (SMALL, {"cp.async"}), 3: (SMALL, {"race"}), 5: (SMALL, {"out of bounds"}), 11: (SMALL, {"result"}),
    12: (case_of(3, 20, 256, F32), {"result"}), 13: (case_of(3, 20, 37, F32), {"result"}), 14: (SMALL, {"result"}),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug: int) -> None:
    case, kinds = BUGS[bug]
    assert kinds <= caught_by(OP, case, bug)


@pytest.mark.parametrize(("m", "dtype"), [(1, BF16), (8, BF16), (64, BF16), (8, F32)])
def test_traffic(m: int, dtype: torch.dtype) -> None:
    n, k = 1024, 1024
    counters = counted(OP, case_of(m, n, k, dtype, bias=False))
    assert counters.dram_bytes <= 1.05 * (n * k * dtype.itemsize + 4 * m * (k + n))
    assert counters.traffic["weight"].read_sectors * 32 == n * k * dtype.itemsize
    if dtype == BF16:
        assert counters.useful_mma_share == min(m, 8) / 8
        loads = sum(line.extra for place, line in counters.shared.items() if "linear.cu" in place.split()[0])
        assert loads == 0


PROGRAM = """
#include <cstdio>
#include <initializer_list>
#include "cuda/linear_config.h"
int main() {
  for (int m : {1, 8, 9, 64, 500})
    for (int n : {1, 2048, 4095, 4096, 8191, 8192}) {
      const auto c = pyspec::cuda::pick_config(m, n);
      std::printf("%d.%d ", c.channels(), c.rows());
    }
}
"""


def test_pick_config(tmp_path: Path) -> None:
    """By hand: 8 or 64 rows; 16, 32 or 64 channels, the widest that leaves 128 blocks, or 64 of many rows."""
    (tmp_path / "table.cpp").write_text(PROGRAM)
    flags = ["-std=c++20", f"-I{build.ROOT / 'csrc'}"]
    subprocess.run([build.CXX, *flags, "table.cpp", "-o", "table"], cwd=tmp_path, check=True)
    table = subprocess.run([tmp_path / "table"], capture_output=True, text=True, check=True).stdout.split()
    one, many = "16.8 16.8 16.8 32.8 32.8 64.8", "32.64 32.64 32.64 64.64 64.64 64.64"
    assert table == (" ".join([one] * 2 + [many] * 3)).split()
