# SPDX-License-Identifier: Apache-2.0
"""The AMX kernels with tiles in software: their bits are those of the kernels that run here; faults and the check at first use."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import amx_library
import pytest
import torch
from torch import Tensor

from pyspec import ops
from pyspec.spec.pack_quant_weight import random_rows
from pyspec.spec.quant_formats import FORMATS

pytestmark = pytest.mark.skipif(amx_library.why_not() != "", reason=amx_library.why_not() or "-")
PLANTED = {
    1: "rows unsigned",
    2: "a store leaves the last row",
    3: "loads keep what tiles had",
    4: "lines signed",
}


@pytest.fixture(scope="module")
def amx() -> ctypes.CDLL:
    loaded = amx_library.load(amx_library.library())
    loaded.use_threads(2)
    return loaded


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def quant_linear(amx: ctypes.CDLL, x: Tensor, weight: Tensor, bias: Tensor | None, name: str, packed: bool, n: int) -> Tensor:  # fmt: skip
    """quant_linear by tiles; an error where the processor would fault."""
    out = torch.full((x.size(0), n), torch.nan)
    format = list(FORMATS).index(name)
    fault = amx.quant_linear(
        address(x), address(weight), address(bias), address(out), format, packed, x.size(0), n, x.size(1)
    )
    assert fault == b""
    return out


def w8a8_linear(amx: ctypes.CDLL, x: Tensor, packed: Tensor, x_scale: Tensor, w_scale: Tensor) -> Tensor:
    out = torch.full((x.size(0), w_scale.size(0)), torch.nan)
    fault = amx.w8a8_linear(
        *map(address, (x, packed, x_scale, w_scale, out)), x.size(0), w_scale.size(0), x.size(1)
    )
    assert fault == b""
    return out


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("groups", [1, 2, 7, 18])
def test_quant_linear_has_equal_bits(amx: ctypes.CDLL, name: str, groups: int) -> None:
    """Every count of rows up to 64, odd counts of groups, channels that fill no block, with and without bias."""
    n, k = 37, groups * FORMATS[name].block_k
    g = torch.Generator().manual_seed(groups)
    x, bias, rows = torch.randn(64, k, generator=g), torch.randn(n, generator=g), random_rows(name, n, k)
    packed = ops.pack_quant_weight(rows, format=name)
    want = ops.quant_linear(x, packed, bias, format=name, layout="packed", num_rows=n)
    before = amx.tile_dots()
    for m in range(1, 65):
        assert torch.equal(quant_linear(amx, x[:m], packed, bias, name, True, n), want[:m])
    assert amx.tile_dots() > before
    got = quant_linear(amx, x[:13], rows, None, name, False, n)
    assert torch.equal(got, ops.quant_linear(x[:13], rows, None, format=name))


@pytest.mark.parametrize("name", FORMATS)
def test_quant_linear_of_bad_rows(amx: ctypes.CDLL, name: str) -> None:
    """NaN and infinity poison their rows alone; extremes of values and of activations are exact."""
    x, rows = torch.full((12, 256), 127.0), random_rows(name, 16, 256)
    x[1], x[2, ::2], x[3, 5], x[4, 9], x[5] = -127.0, -127.0, torch.nan, torch.inf, 1e-35
    packed = ops.pack_quant_weight(rows, format=name)
    want = ops.quant_linear(x, packed, None, format=name, layout="packed", num_rows=16)
    got = quant_linear(amx, x, packed, None, name, True, 16)
    assert torch.equal(got.isnan(), want.isnan())
    assert want.isnan().any(dim=1).tolist() == [m in (3, 4) for m in range(12)]
    assert torch.equal(got.nan_to_num(), want.nan_to_num())


@pytest.mark.parametrize(("n", "k"), [(5, 1), (16, 64), (33, 65), (100, 300), (64, 0)])
def test_w8a8_linear_has_equal_bits(amx: ctypes.CDLL, n: int, k: int) -> None:
    g = torch.Generator().manual_seed(n + k)
    x, weight = (torch.randint(-128, 128, (r, k), generator=g).to(torch.int8) for r in (70, n))
    x_scale, w_scale = torch.rand(70, generator=g), torch.rand(n, generator=g)
    packed = ops.pack_int8_weight(weight)
    want = ops.w8a8_linear_packed(x, packed, x_scale, w_scale)
    for m in (*range(1, 50), 64, 70):
        assert torch.equal(w8a8_linear(amx, x[:m].contiguous(), packed, x_scale, w_scale), want[:m])


@pytest.mark.parametrize("values", [(-128, -128), (-128, 127), (127, -128), (127, 127)])
def test_w8a8_linear_sums_modulo_2_to_the_32(amx: ctypes.CDLL, values: tuple[int, int]) -> None:
    k = 131071
    x, weight = (torch.full((rows, k), v, dtype=torch.int8) for rows, v in zip((7, 5), values, strict=True))
    got = w8a8_linear(amx, x, ops.pack_int8_weight(weight), torch.ones(7), torch.ones(5))
    assert torch.equal(got, torch.full((7, 5), float(values[0] * values[1] * k)))


def test_check_at_first_use_accepts_exact_tiles(amx: ctypes.CDLL) -> None:
    assert amx.check_reason() == b""


@pytest.mark.parametrize("bug", PLANTED, ids=PLANTED.values())
def test_check_at_first_use_refuses_inexact_tiles(tmp_path: Path, bug: int) -> None:
    """A library of its own, since the answer is kept."""
    other = amx_library.load(Path(shutil.copy(amx_library.library(), tmp_path / f"bug{bug}.so")))
    other.use_threads(1)
    other.plant(bug)
    assert other.check_reason() == b"its products differ from those of AVX-512 on this machine"
