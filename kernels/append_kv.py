# SPDX-License-Identifier: Apache-2.0
"""append_kv in Triton: RoPE on new keys, and keys and values into their pages; the specification's bits.

Specification: pyspec/spec/append_kv.py. One program has some KV heads of one token, K and V. e4m3 is
written as bytes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyspec.spec.append_kv import gpu_limit

from .aot import AotCase
from .dots import rows
from .narrow import round_even, row_scale, scaled_down, to_e4m3
from .rope import Config, pick_config, turned


@triton.jit
def write_rows(
    x, pages_ptr, scale_ptr, page, offset, offs_g, offs_d, mask_g, mask_d, stride_p, stride_s, stride_g,
    scale_stride_p, scale_stride_s, scale_stride_g,
):  # fmt: skip
    """x [g, d] f32 to a slot of every KV head, quantised with a scale a row if there is a scale_ptr."""
    page_ptrs = pages_ptr + page * stride_p + offset * stride_s + offs_g * stride_g + offs_d
    dtype: tl.constexpr = pages_ptr.dtype.element_ty
    mask = mask_g & mask_d
    if scale_ptr is None:
        tl.store(page_ptrs, x.to(dtype), mask=mask)
    else:
        scale = row_scale(x, 127.0 if dtype == tl.int8 else 448.0)
        values = scaled_down(x, scale)
        tl.store(
            page_ptrs, round_even(values).to(tl.int8) if dtype == tl.int8 else to_e4m3(values), mask=mask
        )
        scale_ptrs = scale_ptr + page * scale_stride_p + offset * scale_stride_s + offs_g * scale_stride_g
        tl.store(scale_ptrs, scale, mask=mask_g)


@triton.jit
def append_kv_kernel(
    k_ptr, v_ptr, k_pages_ptr, v_pages_ptr, slots_ptr, positions_ptr, table_ptr, k_scale_ptr, v_scale_ptr,
    S, G, D, Y, k_stride_t, k_stride_g, v_stride_t, v_stride_g, k_stride_p, k_stride_s, k_stride_h,
    v_stride_p, v_stride_s, v_stride_h, k_scale_stride_p, k_scale_stride_s, k_scale_stride_g,
    v_scale_stride_p, v_scale_stride_s, v_scale_stride_g, table_stride_x,
    INTERLEAVED: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, PLANTED_BUG: tl.constexpr = "",
):  # fmt: skip
    """Heads [BLOCK_G] of one token of k and v [T, G, D] into its slot, K turned where there is a table."""
    t = tl.program_id(0).to(tl.int64)
    offs_g = (tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)).to(tl.int64)[:, None]
    offs_d = tl.arange(0, BLOCK_D)[None, :]
    mask_g, mask_d = offs_g < G, offs_d < (BLOCK_D if PLANTED_BUG == "no mask" else D)
    mask = mask_g & mask_d
    slot = tl.load(slots_ptr + (0 if PLANTED_BUG == "one slot" else t))
    page, offset = slot // S, slot % S
    k_ptrs = k_ptr + t * k_stride_t + offs_g * k_stride_g + offs_d
    k = tl.load(k_ptrs, mask=mask, other=0.0).to(tl.float32)
    v = tl.load(v_ptr + t * v_stride_t + offs_g * v_stride_g + offs_d, mask=mask, other=0.0).to(tl.float32)
    if table_ptr is not None:
        row_ptr = table_ptr + tl.load(positions_ptr + t).to(tl.int64) * table_stride_x
        k = turned(k_ptrs, k, offs_d, mask, row_ptr, Y, INTERLEAVED, PLANTED_BUG)
    write_rows(
        k, k_pages_ptr, k_scale_ptr, page, offset, offs_g, offs_d, mask_g, mask_d, k_stride_p, k_stride_s,
        k_stride_h, k_scale_stride_p, k_scale_stride_s, k_scale_stride_g,
    )  # fmt: skip
    write_rows(
        v, v_pages_ptr, v_scale_ptr, page, offset, offs_g, offs_d, mask_g, mask_d, v_stride_p, v_stride_s,
        v_stride_h, v_scale_stride_p, v_scale_stride_s, v_scale_stride_g,
    )  # fmt: skip


def raw(pages: Tensor) -> Tensor:
    """Pages as kernels take them: e4m3 as its bytes (Triton has no e4m3 below sm_89)."""
    return pages.view(torch.uint8) if pages.dtype == torch.float8_e4m3fn else pages


def limit(
    sizes: dict[str, int], *args: Tensor | None, kv_layout: str = "paged", **kwargs: object
) -> str | None:
    """Why the kernels of append_kv and commit_kv cannot run a call, or None."""
    pages = next(arg for arg in args if arg is not None and arg.dim() == 4)
    if pages.stride(3) != 1 and pages.size(3) > 1:
        return f"k_pages must have a dense last dimension, got strides {list(pages.stride())}"
    return gpu_limit(sizes, *args, kv_layout=kv_layout)


def append_kv(
    k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor, positions: Tensor,
    rope_table: Tensor | None = None, k_scale: Tensor | None = None, v_scale: Tensor | None = None, *,
    interleaved: bool = False, kv_layout: str = "paged",
) -> None:  # fmt: skip
    """k and v [T, G, D] to slots [T] of the pages [P, S, G, D], in place."""
    c = pick_config(k.size(1), k.size(2))
    _launch(k, v, k_pages, v_pages, slots, positions, rope_table, k_scale, v_scale, interleaved, c)


def _launch(
    k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor, positions: Tensor,
    rope_table: Tensor | None, k_scale: Tensor | None, v_scale: Tensor | None, interleaved: bool, c: Config,
    bug: str = "",
) -> None:  # fmt: skip
    (t, g, d), s = k.shape, k_pages.size(1)
    if k.numel() == 0:
        return
    k, v, table = rows(k), rows(v), None if rope_table is None else rows(rope_table)
    scale_strides = [
        0 if scale is None else scale.stride(i) for scale in (k_scale, v_scale) for i in range(3)
    ]
    append_kv_kernel[(t, triton.cdiv(g, c.block_h))](
        k, v, raw(k_pages), raw(v_pages), slots.contiguous(), positions.contiguous(), table, k_scale,
        v_scale, s, g, d, 0 if table is None else table.size(1), *k.stride()[:2], *v.stride()[:2],
        *k_pages.stride()[:3], *v_pages.stride()[:3], *scale_strides,
        0 if table is None else table.stride(0), INTERLEAVED=interleaved, BLOCK_G=c.block_h,
        BLOCK_D=c.block_d, PLANTED_BUG=bug, num_warps=c.num_warps, enable_fp_fusion=False,
    )  # fmt: skip


def aot_cases() -> list[AotCase]:
    """8 KV heads of 128 from f32 into every kind of page."""
    c = pick_config(8, 128)
    names = append_kv_kernel.arg_names
    cases = []
    for page in ("bf16", "fp16", "u8", "i8"):
        quantised = page in ("u8", "i8")
        constants: dict[str, object] = {
            "INTERLEAVED": False, "BLOCK_G": c.block_h, "BLOCK_D": c.block_d, "PLANTED_BUG": "",
            **({} if quantised else {"k_scale_ptr": None, "v_scale_ptr": None}),
        }  # fmt: skip
        types = {
            "k_pages_ptr": f"*{page}",
            "v_pages_ptr": f"*{page}",
            "slots_ptr": "*i64",
            "positions_ptr": "*i32",
        }
        kinds = {name: types.get(name, "*fp32" if name.endswith("_ptr") else "i32") for name in names}
        signature = {name: "constexpr" if name in constants else kind for name, kind in kinds.items()}
        cases.append(
            AotCase(f"append_kv-{page}", append_kv_kernel, signature, constants, num_warps=c.num_warps)
        )
    return cases
