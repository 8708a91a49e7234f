# SPDX-License-Identifier: Apache-2.0
"""The judges judged: both emulations round, multiply and add as hardware does, and find planted faults."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from emulation import faults, needs_ttsem, same_bits


@triton.jit
def arithmetic_kernel(x_ptr, y_ptr, out_ptr, N: tl.constexpr):
    offs = tl.arange(0, N)
    x, y = tl.load(x_ptr + offs), tl.load(y_ptr + offs)
    tl.store(out_ptr + offs, x + y)
    tl.store(out_ptr + N + offs, x * y)
    tl.store(out_ptr + 2 * N + offs, -x)
    tl.store(out_ptr + 3 * N + offs, tl.where(x < y, x, y))


@triton.jit
def cast_kernel(x_ptr, out_ptr, N: tl.constexpr):
    offs = tl.arange(0, N)
    tl.store(out_ptr + offs, tl.load(x_ptr + offs).to(out_ptr.dtype.element_ty))


@triton.jit
def fma_kernel(x_ptr, y_ptr, z_ptr, out_ptr, N: tl.constexpr):
    offs = tl.arange(0, N)
    tl.store(out_ptr + offs, tl.fma(tl.load(x_ptr + offs), tl.load(y_ptr + offs), tl.load(z_ptr + offs)))


@triton.jit
def dot_kernel(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    offs = tl.arange(0, N)
    a = tl.load(a_ptr + offs[:, None] * N + offs[None, :])
    b = tl.load(b_ptr + offs[:, None] * N + offs[None, :])
    tl.store(out_ptr + offs[:, None] * N + offs[None, :], tl.dot(a, b))


@triton.jit
def fault_kernel(x_ptr, out_ptr, size, N: tl.constexpr, RACE: tl.constexpr):
    offs = (0 if RACE else tl.program_id(0) * N) + tl.arange(0, N)
    x = tl.load(x_ptr + offs, mask=offs < size)
    tl.store(out_ptr + offs, x + tl.program_id(0), mask=offs < size if RACE else None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_arithmetic_rounds_once(dtype: torch.dtype) -> None:
    x, y = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = torch.empty(4, 64, dtype=dtype)
    arithmetic_kernel[(1,)](x, y, out, N=64)
    same_bits(out, torch.stack([x + y, x * y, -x, torch.minimum(x, y)]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
def test_casts_round_to_nearest_even(dtype: torch.dtype) -> None:
    """Ties and denormals among them: integers have more bits than the narrow types."""
    x = torch.cat([torch.arange(-440, 440.0), torch.arange(144) / 4096])
    narrow, wide = torch.empty(1024, dtype=dtype), torch.empty(1024)
    cast_kernel[(1,)](x, narrow, N=1024)
    same_bits(narrow, x.to(dtype))
    cast_kernel[(1,)](narrow, wide, N=1024)
    same_bits(wide, x.to(dtype).float())


def test_fma_rounds_once() -> None:
    """1 + 2^-12 squared, less 1 + 2^-11: only an exact product leaves 2^-24."""
    x = torch.full((32,), 1 + 2**-12)
    out = torch.empty(32)
    fma_kernel[(1,)](x, x, torch.full((32,), -1 - 2**-11), out, N=32)
    assert (out == 2**-24).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dot_is_exact_before_its_rounding(dtype: torch.dtype) -> None:
    a, b = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    out = torch.empty(32, 32)
    dot_kernel[(1,)](a, b, out, N=32)
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=1e-6, atol=1e-6)


@needs_ttsem
@pytest.mark.parametrize(("race", "kind"), [(True, "race"), (False, "oob_write")])
def test_faults_are_found(race: bool, kind: str) -> None:
    x, out = torch.zeros(40), torch.zeros(40)
    with faults(kind):
        fault_kernel[(3,)](x, out, 40, N=16, RACE=race)
