# SPDX-License-Identifier: Apache-2.0
"""Counters on kernels whose traffic, wavefronts and MMAs are known by counting on paper."""

from __future__ import annotations

import pytest
import torch
from cuda_emulator import build, emulator
from cuda_emulator.counters import Counters

FIXTURE = build.HERE / "fixtures/counted.cu"


def counted(kernel: str, stride: int, blocks: int = 1) -> Counters:
    """64 threads a block."""
    x, out = torch.zeros(64 * max(stride, 4) + 64), torch.zeros(64 * max(stride, 4) * blocks + 64)
    with emulator.counting() as counters:
        emulator.run(FIXTURE, f"{kernel}_fixture", {"x": x}, {"out": out}, blocks, stride)
    return counters


@pytest.mark.parametrize(("stride", "sectors"), [(1, 8), (2, 16), (8, 64), (32, 64)])
def test_sectors_of_floats(stride: int, sectors: int) -> None:
    """64 floats are 8 sectors side by side; 8 floats apart every one has a sector of its own."""
    counters = counted("copy_floats", stride)
    x, out = counters.traffic["x"], counters.traffic["out"]
    assert (x.read_bytes, x.read_sectors, x.read_sectors_unique) == (256, sectors, sectors)
    assert (out.written_bytes, out.written_sectors, out.written_sectors_unique) == (256, sectors, sectors)
    assert counters.requested_bytes == 2 * 32 * sectors
    assert x.written_bytes == out.read_bytes == 0


@pytest.mark.parametrize(("stride", "sectors"), [(4, 32), (8, 64)])
def test_sectors_of_vectors(stride: int, sectors: int) -> None:
    """A load of 16 bytes is one access: two of them share a sector where they lie side by side."""
    counters = counted("copy_vectors", stride)
    assert counters.traffic["x"].read_bytes == counters.traffic["out"].written_bytes == 64 * 16
    assert counters.traffic["x"].read_sectors == counters.traffic["out"].written_sectors == sectors


def test_sectors_read_again() -> None:
    """Three blocks read 8 sectors twice each: 48 requests, 24 if a block keeps them, 8 if L2 does."""
    traffic = counted("read_twice", 1, blocks=3).traffic["x"]
    assert (traffic.read_sectors, traffic.read_sectors_per_block, traffic.read_sectors_unique) == (48, 24, 8)


def test_lanes_that_take_no_part() -> None:
    counters = counted("half_warps", 1)
    assert (counters.traffic["x"].read_sectors, counters.traffic["x"].read_bytes) == (4, 128)


def test_copies_in_the_background_are_traffic() -> None:
    counters = counted("copy_in_background", 8)
    assert (counters.traffic["x"].read_bytes, counters.traffic["x"].read_sectors) == (64 * 16, 64)
    (line,) = counters.shared.values()
    assert (line.instructions, line.wavefronts, line.extra) == (2, 8, 0)


# Stores of 4, 8 and 16 bytes at every `stride`-th element: wavefronts, of which 1, 2 and 4 would do.
CONFLICTS = [(1, 1, 2, 4), (2, 2, 4, 8), (3, 1, 2, 4), (4, 4, 8, 16), (16, 16, 32, 32), (32, 32, 32, 32)]


@pytest.mark.parametrize(("stride", "of_4", "of_8", "of_16"), CONFLICTS)
def test_bank_conflicts(stride: int, of_4: int, of_8: int, of_16: int) -> None:
    counters = counted("store_shared", stride)
    text = FIXTURE.read_text().splitlines()
    for size, wavefronts, least in ((4, of_4, 1), (8, of_8, 2), (16, of_16, 4)):
        number = next(i for i, line in enumerate(text, 1) if line.endswith(f"// <- store of {size} bytes"))
        line = counters.shared[f"tests/cuda_emulator/fixtures/counted.cu:{number}"]
        assert (line.instructions, line.wavefronts, line.extra) == (1, wavefronts, wavefronts - least), size


@pytest.mark.parametrize(("stride", "wavefronts"), [(4, 4), (12, 4), (8, 8), (16, 16), (32, 32)])
def test_bank_conflicts_of_ldmatrix(stride: int, wavefronts: int) -> None:
    """Four matrices of eight rows: 16 or 48 bytes apart they lie in different banks, 128 apart in the same."""
    counters = counted("load_rows", stride)
    text = FIXTURE.read_text().splitlines()
    number = next(i for i, line in enumerate(text, 1) if line.endswith("// <- ldmatrix"))
    line = counters.shared[f"tests/cuda_emulator/fixtures/counted.cu:{number}"]
    assert (line.instructions, line.wavefronts, line.extra) == (1, wavefronts, wavefronts - 4)


@pytest.mark.parametrize("rows", [0, 1, 8, 16])
def test_useful_share_of_an_mma(rows: int) -> None:
    counters = counted("multiply_rows", rows)
    assert (counters.mmas, counters.useful_mma_share) == (1, rows / 16)


def test_counts_of_an_op_by_its_arguments() -> None:
    """rms_norm of M rows of K floats: x and out once, the weight once a row from L2 and once from DRAM."""
    M, K = 6, 1024
    with emulator.counting() as counters:
        emulator.call("rms_norm", torch.randn(M, K), torch.rand(K), eps=1e-5)
    assert (
        counters.traffic["x"].read_sectors_per_block == counters.traffic["out"].written_sectors == M * K // 8
    )
    assert counters.traffic["weight"].read_sectors_per_block == M * K // 8
    assert counters.traffic["weight"].read_sectors_unique == K // 8
    assert counters.dram_bytes == 4 * (2 * M * K + K)
    assert counters.barriers >= M
    assert counters.bank_conflicts == 0
