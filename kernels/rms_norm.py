# SPDX-License-Identifier: Apache-2.0
"""rms_norm, add_rms_norm and rms_norm_quantize in Triton. Specifications: the files of pyspec/spec.

One program has one row in registers: x is read once. Block and warps, and with them the order of the sum,
follow from K alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .aot import AotCase
from .dots import rows
from .narrow import round_even, row_scale, scaled_down

MAX_K = 32768  # 64 elements a thread at 16 warps


@dataclass(frozen=True)
class Config:
    """Elements of a row in one program, padded to a power of two, and its warps."""

    block_k: int
    num_warps: int


def pick_config(k: int) -> Config:
    """8 elements a thread up to 4096, more beyond: a row is one program whatever its length."""
    block_k = triton.next_power_of_2(max(k, 1))
    return Config(block_k, min(16, max(1, block_k // 256)))


@triton.jit
def rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, out_ptr, scale_ptr, K, eps, x_stride_m, residual_stride_m,
    BLOCK_K: tl.constexpr, PLANTED_BUG: tl.constexpr = "",
):  # fmt: skip
    """One row; into int8 and a scale if there is a scale_ptr. residual_ptr may be None."""
    m = tl.program_id(0).to(tl.int64)
    offs_k = tl.arange(0, BLOCK_K)
    mask_k = offs_k < (BLOCK_K if PLANTED_BUG == "no mask" else K)
    x = tl.load(x_ptr + m * x_stride_m + offs_k, mask=mask_k, other=0.0)
    if residual_ptr is not None:
        residual_ptrs = residual_ptr + (0 if PLANTED_BUG == "shared row" else m) * residual_stride_m + offs_k
        x = tl.load(residual_ptrs, mask=mask_k, other=0.0) + x
        tl.store(residual_ptrs, x, mask=mask_k)
    mean = tl.div_rn(tl.sum(x * x, axis=0), K * 1.0)  # K = 1 is a constant
    y = x * tl.div_rn(1.0, tl.sqrt_rn(mean + eps)) * tl.load(weight_ptr + offs_k, mask=mask_k, other=0.0)
    if scale_ptr is not None:
        y = y[None, :]
        scale = row_scale(y, 127.0)
        tl.store(scale_ptr + m + tl.zeros([1, 1], tl.int64), scale)
        q = round_even(scaled_down(y, scale)).to(tl.int8)
        tl.store(out_ptr + m * K + offs_k[None, :], q, mask=mask_k[None, :])
    else:
        tl.store(out_ptr + m * K + offs_k, y, mask=mask_k)


def limit(sizes: dict[str, int], *args: Tensor | None, **kwargs: object) -> str | None:
    """Why the kernel cannot run a call, or None."""
    return None if sizes["K"] <= MAX_K else f"K must be at most {MAX_K}, got {sizes['K']}"


def _launch(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    out: Tensor,
    scale: Tensor | None,
    eps: float,
    bug: str = "",
) -> None:
    (m, k), c = x.shape, pick_config(x.size(1))
    if m == 0 or k == 0:
        return
    x = rows(x)
    total = residual if residual is None else rows(residual)
    # The order of the sum is that of the widest access, so one always is: weight and out begin at 16 bytes.
    weight = weight.contiguous() if weight.data_ptr() % 16 == 0 else weight.clone()
    rms_norm_kernel[(m,)](
        x, total, weight, out, scale, k, eps, x.stride(0),
        0 if total is None else total.stride(0), BLOCK_K=c.block_k, PLANTED_BUG=bug, num_warps=c.num_warps,
        enable_fp_fusion=False,
    )  # fmt: skip
    if residual is not None and total is not None and total is not residual:
        residual.copy_(total)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Rows of x [M, K] over their root mean square, times weight [K]."""
    out = x.new_empty(x.shape)
    _launch(x, None, weight, out, None, eps)
    return out


def add_rms_norm(residual: Tensor, delta: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    """residual += delta in place; the rms_norm of the sum."""
    out = delta.new_empty(delta.shape)
    _launch(delta, residual, weight, out, None, eps)
    return out


def rms_norm_quantize(
    x: Tensor, weight: Tensor, residual: Tensor | None = None, *, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """The rms_norm of x (added to residual in place) as int8 rows and their scales."""
    q, scale = x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.size(0))
    _launch(x, residual, weight, q, scale, eps)
    return q, scale


def aot_cases() -> list[AotCase]:
    """Rows of a small and of a large model, and the two fused forms."""
    cases = []
    for k, fused in ((576, ""), (4096, ""), (4096, "residual"), (4096, "quantize"), (16384, "residual")):
        c = pick_config(k)
        signature = {
            "x_ptr": "*fp32", "residual_ptr": "*fp32", "weight_ptr": "*fp32", "out_ptr": "*fp32",
            "scale_ptr": "*fp32", "K": "i32", "eps": "fp32", "x_stride_m": "i32",
            "residual_stride_m": "i32", "BLOCK_K": "constexpr", "PLANTED_BUG": "constexpr",
        }  # fmt: skip
        constants: dict[str, object] = {"BLOCK_K": c.block_k, "PLANTED_BUG": ""}
        for name, given in (("residual_ptr", fused == "residual"), ("scale_ptr", fused == "quantize")):
            if not given:
                signature[name], constants[name] = "constexpr", None
        if fused == "quantize":
            signature["out_ptr"] = "*i8"
        name = f"rms_norm-K{k}{'-' + fused if fused else ''}"
        cases.append(AotCase(name, rms_norm_kernel, signature, constants, num_warps=c.num_warps))
    return cases
