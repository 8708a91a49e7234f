# SPDX-License-Identifier: Apache-2.0
"""CUDA w4a16_linear: every kind of group and zero point within its bound, rows alone, schedules, planted bugs, traffic."""

from __future__ import annotations

import itertools

import pytest
import torch
from contract_tests import error_of
from cuda_emulator import emulator
from emulated_calls import is_the_same_strided
from linear_checks import (
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
from pyspec.spec.w4a16_linear import dequantize

OP = "w4a16_linear"
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def case_of(
    m: int, n: int, k: int, group_size: int, *, zeros: str = "integer", act_order: bool = False,
    x_dtype: torch.dtype = F32, dtype: torch.dtype = F16,
) -> Case:  # fmt: skip
    g = torch.Generator().manual_seed(m + n + k + group_size)
    j = 1 if group_size == -1 else k // group_size
    zero = {
        "none": None,
        "integer": torch.randint(0, 16, (n, j), generator=g).to(dtype),
        "fraction": (torch.rand(n, j, generator=g) * 40 - 12).to(dtype),
    }[zeros]
    args = (
        torch.randn(m, k, generator=g).to(x_dtype),
        torch.randint(0, 256, (n, k // 2), generator=g, dtype=torch.uint8),
        (torch.rand(n, j, generator=g) * 0.02).to(dtype),
        zero,
        torch.randint(0, j, (k,), generator=g, dtype=torch.int32) if act_order else None,
    )
    name = f"M{m}-N{n}-K{k}-g{group_size}-{zeros}{'-act' if act_order else ''}-{x_dtype}-{dtype}"
    return Case(name.replace("torch.", ""), args, {"group_size": group_size})


def is_within_bound(case: Case) -> bool:
    """Dequantised in float64: the specification's own f32 subtraction and product round, the kernel's sums do not."""
    x, qweight, scales, zeros, g_idx = case.args
    wide = [None if t is None else t.double() for t in (scales, zeros)]
    q = torch.stack([qweight & 15, qweight >> 4], dim=-1).flatten(1).double()
    size = case.kwargs["group_size"]
    j = g_idx.long() if g_idx is not None else torch.arange(q.size(1)) // (q.size(1) if size == -1 else size)
    whole = q - (8.0 if wide[1] is None else wide[1][:, j])
    magnitude = (whole.abs() + 16) * wide[0][:, j]  # fractions of zero points are subtracted from sums
    error = (output(OP, case).double() - x.double() @ (whole * wide[0][:, j]).T).abs()
    bound = error_bound(x, split_weight=g_idx is not None) * (x.double().abs() @ magnitude.T)
    return bool((error <= bound).all())


KINDS = [
    case_of(m, 20, 384, size, zeros=zeros, act_order=act, x_dtype=x_dtype)
    for (m, size, zeros, act, x_dtype) in itertools.product(
        (3, 17), (32, 64, 128, -1), ("none", "integer", "fraction"), (False, True), (F32, BF16)
    )
]
ODD = [
    case_of(1, 7, 38, -1, dtype=F32), case_of(2, 1, 2, -1), case_of(9, 640, 128, 32, act_order=True, dtype=BF16),
    case_of(5, 33, 7392, 32, dtype=BF16), case_of(70, 65, 96, 32, dtype=F32), case_of(3, 4097, 64, 64),
]  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in spec.w4a16_linear.cases()])
def test_specification_cases(case: Case) -> None:
    x, *weight = case.args
    dense = dequantize(*weight, case.kwargs["group_size"]).double()
    assert relative_error(output(OP, case), x, dense) <= 2 * error_bound(x, split_weight=True)


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in KINDS + ODD])
def test_error_is_within_its_bound(case: Case) -> None:
    assert is_within_bound(case)


def test_error_is_far_below_that_of_bf16() -> None:
    """f32 rows keep what rounding them to bf16 would lose: 2^-17 against 2^-9."""
    case = case_of(8, 64, 1024, 128)
    x, *weight = case.args
    dense = dequantize(*weight, 128).double()
    low = (x.bfloat16() @ dense.bfloat16().T).float()
    assert relative_error(output(OP, case), x, dense) < relative_error(low, x, dense) / 64


def test_neighbours_of_one_group_share_its_scale() -> None:
    """A g_idx of k // group_size, as checkpoints without act-order have: right, and an eighth of the scales are read."""
    case = case_of(3, 20, 256, 64, act_order=True)
    x, qweight, scales, zeros, _ = case.args
    args = (x, qweight, scales, zeros, torch.arange(256, dtype=torch.int32) // 64)
    neighbours = Case("neighbours", args, case.kwargs)
    assert is_within_bound(neighbours)
    read = [counted(OP, c).traffic["scales"].read_bytes for c in (case, neighbours)]
    assert read[0] == 8 * read[1]


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("x_dtype", [F32, BF16])
def test_rows_do_not_depend_on_the_batch(act_order: bool, x_dtype: torch.dtype) -> None:
    for n in (33, 4100):  # tiles of 16 and of 32 channels for one row, of 32 for many
        assert rows_are_independent(
            OP, case_of(70 if n == 33 else 9, n, 384, 64, act_order=act_order, x_dtype=x_dtype)
        )


@pytest.mark.parametrize(
    "case",
    [case_of(2, 20, 7 * 1024 + 256, 64), case_of(17, 20, 4 * 1024 + 256, 32, act_order=True)],
    ids=lambda c: c.name,
)
def test_every_schedule(case: Case) -> None:
    """More stages than a ring has, for one warp more than for the others."""
    assert is_the_same_in_every_schedule(OP, case)


def test_views_and_unaligned_rows() -> None:
    case = case_of(3, 20, 256, 64)
    assert is_the_same_strided(OP, case)
    assert is_the_same_unaligned(OP, case)


def test_infinite_zero_points_and_nan_stay_in_their_rows_and_channels() -> None:
    case = case_of(3, 20, 128, 64)
    x, _, scales, zeros, _ = case.args
    x[1, 5], zeros[4, 1], scales[6, 0] = torch.nan, torch.inf, torch.nan
    nan = output(OP, case).isnan()
    assert nan[1].all()
    assert nan[:, 6].all()
    assert nan[0, [c for c in range(20) if c not in (4, 6)]].logical_not().all()


@pytest.mark.parametrize("group_size", [16, 128, 64])
def test_refuses_as_the_specification_does(group_size: int) -> None:
    args = (torch.zeros(2, 64), torch.zeros(3, 32, dtype=torch.uint8), torch.zeros(3, 2), None, None)
    want = error_of(lambda: spec.w4a16_linear.run(*args, group_size=group_size))
    assert error_of(lambda: emulator.call(OP, *args, group_size=group_size)) == want


SMALL = case_of(9, 33, 5248, 32)
BUGS = {
    1: (SMALL, {"cp.async"}), 2: (SMALL, {"race"}), 3: (SMALL, {"race"}), 4: (SMALL, {"result"}),
    5: (SMALL, {"out of bounds"}), 6: (SMALL, {"race"}), 11: (SMALL, {"result"}), 12: (SMALL, {"result"}),
    13: (case_of(3, 20, 128, 64, zeros="fraction"), {"result"}), 15: (SMALL, {"result"}),
    14: (case_of(3, 20, 128, 64, act_order=True), {"result"}),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug: int) -> None:
    case, kinds = BUGS[bug]
    assert kinds <= caught_by(OP, case, bug)


@pytest.mark.parametrize("m", [1, 8, 64])
def test_traffic(m: int) -> None:
    """Weights and rows come from DRAM once; the main loop has no bank conflict; no MMA is wasted on a full tile."""
    n, k = 2048, 2048
    case = case_of(m, n, k, 128, zeros="none")
    counters = counted(OP, case)
    floor = n * k // 2 + 2 * n * k // 128 + 4 * m * (k + n)
    assert counters.dram_bytes <= 1.05 * floor
    assert counters.traffic["qweight"].read_bytes == n * k // 2
    assert counters.traffic["qweight"].read_sectors * 32 == n * k // 2
    assert counters.useful_mma_share == min(m, 8) / 8
    merge = [line for place, line in counters.shared.items() if "linear_tile.cuh" in place.split()[0]]
    assert counters.bank_conflicts == sum(line.extra for line in merge)  # none but in the last merge
    assert counters.bank_conflicts * 32 <= sum(line.wavefronts for line in counters.shared.values()) * 8
