# SPDX-License-Identifier: Apache-2.0
"""silu_mul and gelu_mul in Triton: the gate of a feed-forward block, element by element.

Specifications: pyspec/spec/silu_mul.py and pyspec/spec/gelu_mul.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from .aot import AotCase
from .dots import rows

LOG2_E = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True)
class Config:
    """Columns of one program, and its warps."""

    block: int
    num_warps: int


def pick_config(columns: int) -> Config:
    """4 elements a thread, one access of 16 bytes, in blocks of up to 1024 columns."""
    block = min(1024, max(32, triton.next_power_of_2(columns)))
    return Config(block, max(1, block // 128))


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) with an accurate small end: exp(x) / (1 + exp(x)) where x < 0."""
    e = tl.exp2(tl.abs(x) * -LOG2_E)
    return tl.div_rn(tl.where(x < 0, e, 1.0), 1.0 + e)


@triton.jit
def gate_mul_kernel(
    gate_up_ptr,
    out_ptr,
    F,
    gate_up_stride_m,
    GELU: tl.constexpr,
    BLOCK: tl.constexpr,
    PLANTED_BUG: tl.constexpr = "",
):
    """gelu(x) in its tanh form is x * sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    m = tl.program_id(0).to(tl.int64)
    offs_f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask_f = offs_f < (2147483647 if PLANTED_BUG == "no mask" else F)
    gate_ptrs = gate_up_ptr + m * gate_up_stride_m + offs_f
    gate = tl.load(gate_ptrs, mask=mask_f, other=0.0)
    up = tl.load(gate_ptrs + (0 if PLANTED_BUG == "gate twice" else F), mask=mask_f, other=0.0)
    argument = 1.5957691216057308 * gate * (1.0 + 0.044715 * gate * gate) if GELU else gate
    tl.store(out_ptr + m * F + offs_f, gate * sigmoid(argument) * up, mask=mask_f)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of gate_up [M, 2 F]."""
    return _launch(gate_up, False)


def gelu_mul(gate_up: Tensor) -> Tensor:
    """gelu(gate) * up of gate_up [M, 2 F], GELU in its tanh approximation."""
    return _launch(gate_up, True)


def _launch(gate_up: Tensor, gelu: bool, bug: str = "") -> Tensor:
    m, f = gate_up.size(0), gate_up.size(1) // 2
    out, c = gate_up.new_empty(m, f), pick_config(f)
    if out.numel():
        gate_up = rows(gate_up)
        gate_mul_kernel[(m, triton.cdiv(f, c.block))](
            gate_up, out, f, gate_up.stride(0), GELU=gelu, BLOCK=c.block, PLANTED_BUG=bug,
            num_warps=c.num_warps, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def aot_cases() -> list[AotCase]:
    """Both gates of a large model."""
    c = pick_config(14336)
    signature = {
        "gate_up_ptr": "*fp32", "out_ptr": "*fp32", "F": "i32", "gate_up_stride_m": "i32",
        "GELU": "constexpr", "BLOCK": "constexpr", "PLANTED_BUG": "constexpr",
    }  # fmt: skip
    constants = {"BLOCK": c.block, "PLANTED_BUG": ""}
    return [
        AotCase(
            name, gate_mul_kernel, signature, {**constants, "GELU": name == "gelu_mul"}, num_warps=c.num_warps
        )
        for name in ("silu_mul", "gelu_mul")
    ]
