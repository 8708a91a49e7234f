# SPDX-License-Identifier: Apache-2.0
"""CUDA quant_linear under the emulator: the CPU kernel's bits in six formats, odd addresses, schedules, planted bugs, traffic."""

from __future__ import annotations

import pytest
import torch
from contract_tests import error_of, needs_native
from cuda_emulator import emulator
from emulated_calls import bits, emulated, same, shifted
from linear_checks import (
    caught_by,
    counted,
    is_the_same_in_every_schedule,
    output,
    rows_are_independent,
)

from pyspec import spec
from pyspec.contract import Case
from pyspec.spec.pack_quant_weight import random_rows
from pyspec.spec.quant_formats import FORMATS

OP = "quant_linear"


def case_of(format: str, m: int, n: int, k: int, *, bias: bool = False) -> Case:
    g = torch.Generator().manual_seed(m + n + k)
    args = (
        torch.randn(m, k, generator=g),
        random_rows(format, n, k),
        torch.randn(n, generator=g) if bias else None,
    )
    return Case(f"{format}-M{m}-N{n}-K{k}", args, {"format": format})


def sizes(format: str) -> list[tuple[int, int, int]]:
    """Besides the specification's: stages that are not full, rows that begin between 16 bytes, more rows than a tile."""
    if FORMATS[format].block_k == 32:
        return [(1, 17, 32), (2, 5, 352), (65, 33, 288), (8, 16, 2048 + 96)]
    return [(1, 17, 256), (2, 5, 1280), (65, 33, 512)]


CASES = [
    *(case for case in spec.quant_linear.cases() if case.kwargs.get("layout") != "packed"),
    *(case_of(format, m, n, k, bias=True) for format in FORMATS for m, n, k in sizes(format)),
]


@needs_native
@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES])
def test_has_the_bits_of_the_cpu_kernel(case: Case) -> None:
    """And the specification's values, which sum in float64."""
    out = output(OP, case)
    assert same(out, torch.ops.pyspec.quant_linear(*case.args, **case.kwargs))
    want = spec.quant_linear.run(*case.args, **case.kwargs)
    if want.numel():
        assert (out - want).abs().max() <= 1e-6 * want.abs().max()


@pytest.mark.parametrize("format", FORMATS)
def test_rows_do_not_depend_on_the_batch(format: str) -> None:
    assert rows_are_independent(OP, case_of(format, 70, 33, 512, bias=True))


@pytest.mark.parametrize("format", FORMATS)
def test_every_schedule(format: str) -> None:
    """More stages than a ring has."""
    for m in (2, 10):
        assert is_the_same_in_every_schedule(OP, case_of(format, m, 20, 6 * 256))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shift", [1, 2, 6])
def test_weights_at_any_address(format: str, shift: int) -> None:
    """A weight that begins `shift` bytes behind a multiple of 16, and ends there: nothing around it is read."""
    case = case_of(format, 3, 19, 512)
    x, rows, bias = case.args
    flat = shifted(rows.flatten()[None], shift)[0].view(rows.shape)
    moved = Case(case.name, (shifted(x), flat, bias), case.kwargs)
    assert same(emulated(OP, moved, checked=True)[0], output(OP, case))


def test_nan_and_infinity_poison_their_row_alone() -> None:
    case = case_of("q4_k", 3, 20, 512)
    case.args[0][0, 5], case.args[0][2, 300] = torch.nan, torch.inf
    out = output(OP, case)
    assert out[[0, 2]].isnan().all()
    assert torch.equal(
        bits(out[1:2]), bits(output(OP, Case("one", (case.args[0][1:2], *case.args[1:]), case.kwargs)))
    )


@pytest.mark.parametrize("format", ["q4_k", "q6_k"])
def test_scales_of_zero(format: str) -> None:
    """A row of blocks whose scales are zero, beside one that has all."""
    case = case_of(format, 2, 2, 512)
    case.args[1][0] = 0
    out = output(OP, case)
    assert torch.equal(out[:, 0], torch.zeros(2))
    assert same(out, torch.ops.pyspec.quant_linear(*case.args, **case.kwargs))


def test_refuses_as_the_specification_does() -> None:
    x, rows = torch.zeros(2, 256), torch.zeros(3, 144, dtype=torch.uint8)
    for format, layout, num_rows in (
        ("q4_x", "rows", 0),
        ("q5_0", "rows", 0),
        ("q4_k", "tiles", 0),
        ("q4_k", "rows", 4),
    ):
        kwargs = {"format": format, "layout": layout, "num_rows": num_rows}
        want = error_of(lambda k=kwargs: spec.quant_linear.run(x, rows, None, **k))
        assert error_of(lambda k=kwargs: emulator.call(OP, x, rows, None, **k)) == want
    packed = torch.zeros(1, FORMATS["q4_k"].packed_bytes(256), dtype=torch.uint8)
    kwargs = {"format": "q4_k", "layout": "packed", "num_rows": 3}
    _, message = error_of(lambda: emulator.call(OP, x, packed, None, **kwargs))
    assert message == "quant_linear: layout must be rows on GPUs, got packed"


BUGS = {
    1: (case_of("q4_0", 3, 20, 1536), "cp.async"), 2: (case_of("q4_0", 10, 20, 1536), "race"),
    3: (case_of("q4_0", 10, 20, 1536), "race"), 4: (case_of("q4_1", 3, 20, 256), "result"),
    5: (case_of("q8_0", 3, 20, 256), "out of bounds"), 6: (case_of("q4_k", 3, 20, 256), "result"),
    7: (case_of("q6_k", 3, 19, 256), "out of bounds"), 8: (case_of("q6_k", 3, 20, 256), "result"),
    9: (case_of("q4_0", 3, 20, 256), "race"), 10: (case_of("q4_0", 3, 20, 256), "result"),
    21: (case_of("q5_0", 3, 20, 256), "result"), 22: (case_of("q6_k", 3, 20, 256), "result"),
    23: (case_of("q4_k", 3, 20, 256), "result"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug: int) -> None:
    case, kind = BUGS[bug]
    assert kind in caught_by(OP, case, bug)


@pytest.mark.parametrize(("format", "m"), [("q4_0", 1), ("q4_0", 64), ("q8_0", 8), ("q4_k", 8), ("q6_k", 8)])
def test_traffic(format: str, m: int) -> None:
    """Weights come from DRAM once; the copies ask for little more than the blocks; no bank conflicts but of scales."""
    n, k = 256, 2048  # rows of whole 16 bytes in every format
    counters = counted(OP, case_of(format, m, n, k))
    weight = n * FORMATS[format].row_bytes(k)
    groups = m * k // 32
    assert counters.dram_bytes <= 1.05 * (weight + m * (4 * k + 4 * n) + 2 * (m * k + 12 * groups))
    assert counters.traffic["qweight"].read_bytes <= 1.15 * weight
    if m > 8:
        assert counters.bank_conflicts == 0
    else:  # two lanes of a quad read the scales of 16 channels: 16 addresses that are multiples of 16 bytes
        assert counters.bank_conflicts <= 0.12 * sum(line.wavefronts for line in counters.shared.values())
