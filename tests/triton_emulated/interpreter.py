# SPDX-License-Identifier: Apache-2.0
"""Repairs Triton's interpreter (TRITON_INTERPRET=1) where it is not exact: bf16, fp8, fma, tf32.

Triton 3.8's interpreter keeps bf16 and fp8 as the integers of their bits. It adds, multiplies and negates
those integers, and truncates where a GPU rounds to nearest even. Here every such operation widens to f32,
computes, and rounds once. Refused, since the interpreter cannot do it right: reductions and scans of narrow
floats (Triton's own sum and max widen bf16 before).
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, ReduceScanOpInterface, TensorHandle

NARROW = {
    tl.bfloat16: (torch.bfloat16, torch.uint16),
    tl.float8e4nv: (torch.float8_e4m3fn, torch.uint8),
    tl.float8e5: (torch.float8_e5m2, torch.uint8),
}  # floats that numpy has not: their torch dtype and the dtype of their bits
FLOATS = {tl.float16, tl.float32, tl.float64, *NARROW}
TF32_BITS = np.uint32(0xFFFFE000)  # tensor cores drop the low 13 bits of f32 operands


def widened(handle: TensorHandle) -> np.ndarray:
    """The values of a handle: f32 for narrow floats, the data themselves otherwise."""
    dtype = handle.dtype.scalar
    if dtype not in NARROW:
        return handle.data
    return torch.from_numpy(np.ascontiguousarray(handle.data)).view(NARROW[dtype][0]).float().numpy()


def rounded(values: np.ndarray, dtype: Any) -> TensorHandle:
    """A handle of `dtype`, rounded to nearest even; fp8 saturates, as cvt.rn.satfinite does."""
    scalar = dtype.scalar
    if scalar not in NARROW:
        return TensorHandle(values.astype(interpreter._get_np_dtype(dtype)), scalar)
    narrow, bits = NARROW[scalar]
    wide = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    if bits == torch.uint8:
        largest = torch.finfo(narrow).max
        wide = torch.where(wide.isnan(), wide, wide.clamp(-largest, largest))
    return TensorHandle(wide.to(narrow).view(bits).numpy(), scalar)


def cast(builder: InterpreterBuilder, source: TensorHandle, dtype: Any) -> TensorHandle:
    return rounded(widened(source), dtype)


def fp_to_fp(builder: InterpreterBuilder, source: TensorHandle, dtype: Any, rounding: Any) -> TensorHandle:
    exact = {source.dtype.scalar, dtype.scalar} <= FLOATS and rounding != ir.ROUNDING_MODE.RTZ
    return cast(builder, source, dtype) if exact else _stock_fp_to_fp(builder, source, dtype, rounding)


def binary(
    builder: InterpreterBuilder, left: TensorHandle, right: TensorHandle, function: Callable[..., np.ndarray]
) -> TensorHandle:
    if left.dtype.scalar not in NARROW:
        return _stock_binary(builder, left, right, function)
    result = function(widened(left), widened(right))
    return TensorHandle(result, tl.int1) if result.dtype == bool else rounded(result, left.dtype)


def unary(
    builder: InterpreterBuilder, source: TensorHandle, function: Callable[..., np.ndarray]
) -> TensorHandle:
    return rounded(function(widened(source)), source.dtype)


def fma(builder: InterpreterBuilder, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
    """x y + z with one rounding: in f64 the product of f32 is exact, and the sum is rounded to odd, which a
    second rounding to f32 cannot spoil (Boldo and Melquiond 2008). f64 goes to the C library, one by one."""
    if z.dtype.scalar == tl.float64:
        return TensorHandle(_fma(x.data, y.data, z.data), tl.float64)
    product = widened(x).astype(np.float64) * widened(y).astype(np.float64)
    addend = widened(z).astype(np.float64)
    total = product + addend
    with np.errstate(invalid="ignore"):
        back = total - product
        error = (product - (total - back)) + (addend - back)  # the two-sum's exact rest
        even = total.view(np.int64) & 1 == 0
        odd = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
        total = np.where(np.isfinite(total) & (error != 0) & even, odd, total)
    return rounded(total, z.dtype)


def dot(
    builder: InterpreterBuilder,
    a: TensorHandle,
    b: TensorHandle,
    d: TensorHandle,
    precision: Any,
    imprecise: int,
) -> TensorHandle:
    """Products of 16-bit floats and of tf32 are exact in f64; they are summed there and rounded once."""
    x, y = widened(a), widened(b)
    if np.issubdtype(x.dtype, np.integer):
        return TensorHandle(np.matmul(x.astype(np.int32), y.astype(np.int32)) + d.data, d.dtype.scalar)
    if x.dtype == np.float32 and a.dtype.scalar == tl.float32 and precision == ir.INPUT_PRECISION.TF32:
        x, y = ((v.view(np.uint32) & TF32_BITS).view(np.float32) for v in map(np.ascontiguousarray, (x, y)))
    return rounded(np.matmul(x.astype(np.float64), y.astype(np.float64)) + widened(d), d.dtype)


def check_reduced(reduction: ReduceScanOpInterface, tensors: tuple[Any, ...]) -> None:
    _stock_check_tensor(reduction, tensors)
    for tensor in tensors:
        if tensor.dtype.scalar in NARROW:
            raise NotImplementedError(f"interpreter: a reduction must widen {tensor.dtype} first")


_libm = ctypes.CDLL(ctypes.util.find_library("m"))
_libm.fma.restype = ctypes.c_double
_libm.fma.argtypes = [ctypes.c_double] * 3
_fma = np.vectorize(_libm.fma, otypes=[np.float64])
_stock_fp_to_fp = InterpreterBuilder.create_fp_to_fp
_stock_binary = InterpreterBuilder.binary_op
_stock_check_tensor = ReduceScanOpInterface.check_tensor


def repair() -> None:
    """Replace the inexact operations; the others are defined by these and look them up when called."""
    InterpreterBuilder.cast_impl = cast
    InterpreterBuilder.create_fp_to_fp = fp_to_fp
    InterpreterBuilder.binary_op = binary
    InterpreterBuilder.unary_op = unary
    InterpreterBuilder.create_fma = fma
    InterpreterBuilder.create_dot = dot
    ReduceScanOpInterface.check_tensor = check_reduced
