# SPDX-License-Identifier: Apache-2.0
"""Matrix instructions against numpy models of the PTX ISA; warp and bit functions by hand; a whole matmul."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cuda_emulator import build, emulator

FIXTURES = build.HERE / "fixtures"
LANES = range(32)


def a_position(lane: int, i: int, bits: int) -> tuple[int, int]:
    """Row and k of element i of a lane's fragment of A: PTX ISA, m16n8k16 (16 bits) and m16n8k32 (8 bits)."""
    group, thread = lane >> 2, lane % 4
    if bits == 16:
        row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
        return row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)
    row = group if 0 <= i < 4 or 8 <= i < 12 else group + 8
    return row, thread * 4 + (i & 3) + (16 if i >= 8 else 0)


def b_position(lane: int, i: int, bits: int) -> tuple[int, int]:
    """k and column of element i of a lane's fragment of B."""
    group, thread = lane >> 2, lane % 4
    if bits == 16:
        return thread * 2 + (i & 1) + (8 if i >= 2 else 0), group
    return thread * 4 + (i & 3) + (16 if i >= 4 else 0), group


def c_position(lane: int, i: int) -> tuple[int, int]:
    """Row and column of element i of a lane's fragment of C and D."""
    return (lane >> 2) + (8 if i >= 2 else 0), (lane % 4) * 2 + (i & 1)


TYPES = {
    "mma_bf16": torch.bfloat16,
    "mma_f16": torch.float16,
    "mma_e4m3": torch.float8_e4m3fn,
    "mma_s8": torch.int8,
}


def random_elements(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    if dtype == torch.int8:
        return torch.randint(-128, 128, shape, dtype=torch.int8)
    return torch.randn(*shape).to(dtype)


@pytest.mark.parametrize("name", TYPES)
def test_mma_multiplies_the_fragments_of_the_isa(name: str) -> None:
    dtype = TYPES[name]
    bits = dtype.itemsize * 8
    depth, each = 256 // bits, 32 // bits
    a, b = random_elements(dtype, 32, 4 * each), random_elements(dtype, 32, 2 * each)
    accumulator = torch.int32 if dtype == torch.int8 else torch.float32
    c = random_elements(torch.int8, 32, 4).to(accumulator)
    d = torch.empty(32, 4, dtype=accumulator)
    emulator.run(FIXTURES / "fragments.cu", f"{name}_fixture", {"a": a, "b": b, "c": c}, {"d": d})

    exact = np.float64
    left, right, start = np.zeros((16, depth)), np.zeros((depth, 8)), np.zeros((16, 8))
    for lane in LANES:
        for i in range(4 * each):
            left[a_position(lane, i, bits)] = exact(a[lane, i].float())
        for i in range(2 * each):
            right[b_position(lane, i, bits)] = exact(b[lane, i].float())
        for i in range(4):
            start[c_position(lane, i)] = exact(c[lane, i])
    want = start + left @ right
    got = np.array([[d[lane, i].item() for i in range(4)] for lane in LANES])
    for lane in LANES:
        for i in range(4):
            value = want[c_position(lane, i)]
            assert abs(got[lane, i] - value) <= (0 if dtype == torch.int8 else 2**-23 * max(1, np.abs(value)))


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("matrices", [2, 4])
def test_ldmatrix_distributes_rows_as_the_isa_says(matrices: int, transposed: int) -> None:
    """Register i of thread T: elements (T / 4, 2 (T % 4)) and the next of matrix i, or of its transpose."""
    x = torch.randint(-30000, 30000, (matrices, 8, 8), dtype=torch.int16)
    out = torch.empty(32, 4, dtype=torch.int32)
    emulator.run(
        FIXTURES / "fragments.cu",
        "ldmatrix_fixture",
        {"x": x},
        {"out": out},
        matrices,
        transposed,
        checked=True,
    )
    words = out.numpy().view(np.uint16).reshape(32, 4, 2)
    for lane in LANES:
        for i in range(4):
            source = (
                (x[i].T if transposed else x[i]).numpy().view(np.uint16) if i < matrices else np.zeros((8, 8))
            )
            assert list(words[lane, i]) == list(source[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2])


def expected_rows(x: list[int]) -> list[list[int]]:
    """The rows of warp_functions.cu."""
    warp = [x[:32], x[32:]]
    by_lane = lambda f: [f(warp[t // 32], t % 32) for t in range(64)]
    signed = lambda word: word - (1 << 32) if word >= 1 << 31 else word
    mask = lambda condition: signed(sum(1 << i for i in LANES if condition(i)))
    bits = lambda v: f"{v:032b}"
    return [
        by_lane(lambda w, i: w[5]),
        by_lane(lambda w, i: w[i // 8 * 8 + (i + 1) % 8]),
        by_lane(lambda w, i: w[i ^ 3]),
        by_lane(lambda w, i: w[i - 2] if i >= 2 else w[i]),
        by_lane(lambda w, i: w[i + 3] if i % 16 + 3 < 16 else w[i]),
        by_lane(lambda w, i: mask(lambda j: w[j] % 3 == 0)),
        by_lane(lambda w, i: int(7 in w)),
        by_lane(lambda w, i: 1),
        by_lane(lambda w, i: mask(lambda j: w[j] % 4 == w[i] % 4)),
        by_lane(lambda w, i: sum(w)),
        by_lane(lambda w, i: -min(w)),
        by_lane(lambda w, i: min(w)),
        [sum(v % 2 for v in x)] * 64,
        [int(63 in x)] * 64,
        [int(max(x) < 63)] * 64,
        by_lane(lambda w, i: w[i ^ 1]),
        [0x77114400] * 64,
        [v + 1 * 2 - 1 * 2 + 2 * 3 - 2 * 4 for v in x],
        [v >> 1 for v in x],
        [v.bit_count() * 10000 + (((v & -v).bit_length()) * 100) + 32 - v.bit_length() for v in x],
        [int(bits(v)[::-1], 2) >> 24 for v in x],
        by_lane(lambda w, i: signed(0x0123456789ABCDEF >> i & 0xFFFFFFFF)),
        [v + (v % 2) for v in x],
    ]  # fmt: skip


@pytest.mark.parametrize("order", emulator.ORDERS)
def test_warp_functions(order: str) -> None:
    x = torch.randperm(64, dtype=torch.int32)
    want = torch.tensor(expected_rows(x.tolist()), dtype=torch.int32)
    out = torch.zeros_like(want)
    with emulator.schedule(order=order):
        emulator.run(FIXTURES / "warp_functions.cu", "results_fixture", {"x": x}, {"out": out}, checked=True)
    for row, (got, expected) in enumerate(zip(out, want, strict=True)):
        assert torch.equal(got, expected), f"row {row}: {got.tolist()} {expected.tolist()}"


def matmul(M: int, N: int, K: int, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    a, b, out = torch.randn(M, K).bfloat16(), torch.randn(N, K).bfloat16(), torch.full((M, N), torch.nan)
    emulator.run(FIXTURES / "matmul.cu", "matmul", {"a": a, "b": b}, {"out": out}, M, N, K, **options)
    return out, a.double() @ b.double().T


@pytest.mark.parametrize("copies", emulator.COPIES)
@pytest.mark.parametrize("order", emulator.ORDERS)
def test_matmul_under_every_schedule(order: str, copies: str) -> None:
    with emulator.schedule(order=order, copies=copies, seed=5):
        for checked in (False, True):
            out, exact = matmul(40, 72, 96, checked=checked)
            assert (out - exact).abs().max() <= 6 * 2**-24 * exact.abs().max()  # one rounding a step of 16


@pytest.mark.parametrize(
    ("bug", "kind"), [(1, "cp.async"), (2, "unwritten"), (3, "race"), (4, "out of bounds")]
)
@pytest.mark.parametrize("order", emulator.ORDERS)
def test_planted_bugs_of_the_matmul_are_found(bug: int, kind: str, order: str) -> None:
    with emulator.schedule(order=order, copies="late"), pytest.raises(emulator.EmulatorError) as error:
        matmul(40, 40, 96, checked=True, bug=bug)
    assert kind in error.value.kinds
    assert all("fixtures/matmul.cu:" in finding.place for finding in error.value.findings)
