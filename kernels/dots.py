# SPDX-License-Identifier: Apache-2.0
"""Products on tensor cores that the linear family shares: 16-bit halves, the order of sums, parts of K.

The weight is the left operand: [BLOCK_N, BLOCK_K] @ [BLOCK_K, BLOCK_M]. The instruction's fixed side (16
rows of mma.sync, 64 of wgmma, 64 or 128 of tcgen05) then lies along the channels, and N alone chooses it.
Rows of x are its columns: their number changes how many columns one instruction has, not how a column is
summed. So a row's bits do not depend on M as far as the code decides it: same instruction kind, same
BLOCK_K, same parts of K for one row and for a thousand. (That an instruction sums each of its columns alike
is the hardware's; it was not measured.) One row also wastes less: 16 columns, not 64 rows.

On sm_90 and newer a weight's tiles come by tensor descriptors, copied by the TMA unit: one instruction a tile,
no addresses and masks in registers. What lies behind N and K is zero either way: the bits are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .aot import AotCase

OPTIONS = {
    "enable_fp_fusion": False
}  # a scale times a sum, plus the next part: fused it would have other bits than split
SIZE_TYPES = dict.fromkeys(
    ("M", "N", "K", "x_stride_m", "weight_stride_n", "out_stride_p", "out_stride_m", "part_k"), "i32"
)  # of every kernel of the family
PROGRAMS = 264  # two per SM of a large GPU: what a call of one row should come to
TMA_CAPABILITY = 90  # the oldest with descriptors
SHORTEST_PART = 128  # k: below that a part's prologue costs more than it brings


@dataclass(frozen=True)
class Config:
    """How one call is cut.

    block_n, block_k and parts, which fix the order of sums, follow from N, K and the weight alone.
    """

    block_m: int
    block_n: int
    block_k: int
    part_k: int  # k of a part of K; parts are summed one after another
    parts: int
    split: bool  # whether each part is a program of its own (few rows) or all parts of a tile are one
    num_warps: int
    num_stages: int

    def grid(self, m: int, n: int) -> tuple[int, int, int]:
        """Tiles of N, tiles of M, and parts of K that are programs of their own."""
        return triton.cdiv(n, self.block_n), triton.cdiv(m, self.block_m), self.parts if self.split else 1

    @property
    def constants(self) -> dict[str, Any]:
        """The kernel's constexprs."""
        tile = {"BLOCK_M": self.block_m, "BLOCK_N": self.block_n, "BLOCK_K": self.block_k}
        return {"PARTS": self.parts, "SPLIT": self.split, **tile}

    @property
    def options(self) -> dict[str, Any]:
        """The compiler's. Left to itself ptxas spills registers of large tiles to fit two on an SM."""
        large = self.block_m * self.block_n >= 64 * 128
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, **OPTIONS} | (
            {"maxnreg": 255} if large else {}
        )

    def aot_case(
        self, name: str, fn: Any, signature: dict[str, str], constants: dict[str, Any], descriptor: str = "",
        packed: int = 1,
    ) -> AotCase:  # fmt: skip
        """The kernel of this launch, every size but M a multiple of 16.

        None and "" among `constants` are constexprs too; `descriptor` names the argument that is one, if any, whose
        elements hold `packed` k each.
        """
        constants = {**constants, **self.constants, "PLANTED_BUG": ""}
        signature = {**signature, **dict.fromkeys(constants, "constexpr")}
        signature = {argument: signature[argument] for argument in fn.arg_names}
        least = 80
        if descriptor:
            name, least = f"{name}-tma", TMA_CAPABILITY
            dtype = signature[descriptor].removeprefix("*")
            signature[descriptor] = f"tensordesc<{dtype}[{self.block_n}, {self.block_k // packed}]>"
        aligned = tuple(
            a for a, kind in signature.items() if kind != "constexpr" and a not in ("M", descriptor)
        )
        options = {name: value for name, value in self.options.items() if not name.startswith("num_")}
        return AotCase(
            name, fn, signature, constants, self.num_warps, self.num_stages, aligned, options, least
        )


def pick_config(m: int, n: int, k: int, *, block_k: int, unit_k: int, area: int) -> Config:
    """The launch for x [m, k] and a weight [n, k]: tiles of at most `area` outputs, parts of unit_k."""
    block_n = 128 if n >= 64 * PROGRAMS else 64
    tiles = triton.cdiv(n, block_n)
    parts = 1
    while 2 * parts * tiles <= PROGRAMS and k >= 2 * parts * max(SHORTEST_PART, unit_k):
        parts *= 2
    part_k = max(1, triton.cdiv(triton.cdiv(k, parts), unit_k)) * unit_k
    parts = max(1, triton.cdiv(k, part_k))
    block_m = min(area // block_n, max(16, triton.next_power_of_2(m)), 128)
    split = parts > 1 and tiles * triton.cdiv(m, block_m) < PROGRAMS
    num_warps = 8 if block_n == 128 or block_m == 128 else 4
    return Config(block_m, block_n, block_k, part_k, parts, split, num_warps, 3)


def rows(x: Tensor) -> Tensor:
    """x with its last dimension dense."""
    return x if x.stride(-1) == 1 or x.size(-1) <= 1 else x.contiguous()


def has_tma() -> bool:
    """Whether the GPU in use copies tiles by descriptors; False without one: tests ask emulators for both ways."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] * 10 >= TMA_CAPABILITY


def tiles_of(weight: Tensor, block_n: int, block_k: int, tma: bool) -> Tensor | TensorDescriptor:
    """A weight [N, K] as kernels take it: a descriptor of its tiles where the target has them and the weight
    keeps their rules (dense rows that start at multiples of 16 bytes and do not overlap), else itself."""
    starts = weight.data_ptr() | weight.stride(0) * weight.itemsize
    dense = weight.stride(1) == 1 and weight.stride(0) >= weight.size(1)
    return (
        TensorDescriptor.from_tensor(weight, [block_n, block_k])
        if tma and dense and starts % 16 == 0
        else weight
    )


@triton.jit
def load_rows(weight_ptr, first_n, first_k, offs_n, offs_k, stride_n, mask_n, mask_k):
    """A tile of a weight from channel first_n and k first_k on: [BLOCK_N, BLOCK_K]; `tiles_of` says how."""
    if isinstance(weight_ptr, tl.tensor_descriptor):
        return weight_ptr.load([first_n, first_k])
    else:
        ptrs = weight_ptr + offs_n[:, None] * stride_n + offs_k[None, :]
        return tl.load(ptrs, mask=mask_n[:, None] & mask_k[None, :], other=0)


@triton.jit
def load_columns(x_ptr, offs_m, offs_k, stride_m, mask_m, mask_k):
    """Rows of x as columns: [BLOCK_K, BLOCK_M]."""
    ptrs = x_ptr + offs_m[None, :] * stride_m + offs_k[:, None]
    return tl.load(ptrs, mask=mask_m[None, :] & mask_k[:, None], other=0)


@triton.jit
def store_columns(out_ptr, columns, offs_m, offs_n, stride_m, mask_m, mask_n):
    """Columns [BLOCK_N, BLOCK_M] as rows of out."""
    ptrs = out_ptr + offs_m[None, :] * stride_m + offs_n[:, None]
    tl.store(ptrs, columns, mask=mask_n[:, None] & mask_m[None, :])


@triton.jit
def halves(x):
    """x [.., ..] f32 as the sum of two bf16: an error of 2^-17 instead of 2^-9. Infinities become NaN."""
    high = x.to(tl.bfloat16)
    return high, (x - high.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def dot(w, x, acc):
    """acc + w @ x; an f32 operand enters as two bf16 halves.

    Small products come first; low @ low, 2^-18 of the result, is left out.
    """
    if w.dtype == tl.float32:
        w, w_low = halves(w)
        acc = tl.dot(w_low, x.to(tl.bfloat16), acc)
    if x.dtype == tl.float32:
        x, x_low = halves(x)
        acc = tl.dot(w, x_low, acc)
    return tl.dot(w, x, acc)


@triton.jit
def sum_parts_kernel(
    partial_ptr, bias_ptr, out_ptr, N, out_stride_m, partial_stride_p, partial_stride_m,
    PARTS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out[m, n] = ((0 + partial[0]) + partial[1]) ... + bias[n], as a program that has all parts does it."""
    m = tl.program_id(1).to(tl.int64)
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    total = tl.zeros([BLOCK_N], tl.float32)
    part_ptr = partial_ptr + m * partial_stride_m
    for _ in tl.static_range(PARTS):
        total += tl.load(part_ptr + offs_n, mask=mask_n, other=0.0)
        part_ptr += partial_stride_p
    if bias_ptr is not None:
        total += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0)
    tl.store(out_ptr + m * out_stride_m + offs_n, total, mask=mask_n)


def partials(config: Config, out: Tensor) -> Tensor:
    """Where the main kernel writes [parts, M, N]: out itself unless each part is a program of its own."""
    return out.new_empty(config.parts, *out.shape) if config.split else out[None]


def sum_parts(partial: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Second launch of a split call."""
    m, n = out.shape
    block_n = min(1024, max(32, triton.next_power_of_2(n)))
    sum_parts_kernel[(triton.cdiv(n, block_n), m)](
        partial, bias, out, n, out.stride(0), partial.stride(0), partial.stride(1), PARTS=partial.size(0),
        BLOCK_N=block_n, **OPTIONS,
    )  # fmt: skip


def sum_parts_case() -> AotCase:
    """The second launch of four parts."""
    pointers = {"partial_ptr": "*fp32", "bias_ptr": "*fp32", "out_ptr": "*fp32"}
    sizes = dict.fromkeys(("N", "out_stride_m", "partial_stride_p", "partial_stride_m"), "i32")
    constants = {"PARTS": 4, "BLOCK_N": 1024}
    signature = {**pointers, **sizes, **dict.fromkeys(constants, "constexpr")}
    return AotCase("linear-sum-parts", sum_parts_kernel, signature, constants)


def zeros_where_empty(out: Tensor, k: int, bias: Tensor | None) -> bool:
    """Whether there is nothing to launch; sums over no k are zeros plus the bias."""
    if out.numel() and k == 0:
        out.copy_(torch.zeros_like(out) if bias is None else bias.expand_as(out))
    return out.numel() == 0 or k == 0
