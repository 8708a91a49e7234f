# SPDX-License-Identifier: Apache-2.0
"""commit_kv in Triton: the accepted path's KV moves behind the committed tokens, in place.

Specification: pyspec/spec/commit_kv.py. Any overlap; bits are kept. One program moves one KV head of K or V
of one request, some nodes of the path at a time: all of a chunk is read before any of it is written. A later
chunk reads slots that no earlier one wrote, since path[j] >= j.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from .aot import AotCase
from .append_kv import limit as limit
from .append_kv import raw


@dataclass(frozen=True)
class Config:
    """Nodes of a chunk, (padded) head dim, and warps."""

    block_e: int
    block_d: int
    num_warps: int


def pick_config(longest: int, d: int) -> Config:
    """Chunks of up to 16 nodes (paths are mostly shorter) and 4096 elements."""
    block_d = triton.next_power_of_2(max(d, 1))
    block_e = min(16, max(1, 4096 // block_d), triton.next_power_of_2(max(longest, 1)))
    return Config(block_e, block_d, min(4, max(1, block_e * block_d // 256)))


@triton.jit
def move(
    pages_ptr, scale_ptr, table_ptr, path_ptr, L, length, S, D, g, stride_p, stride_s, stride_g,
    scale_stride_p, scale_stride_s, scale_stride_g, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
    PLANTED_BUG: tl.constexpr,
):  # fmt: skip
    """Head g of K or V: slots L + path[i] to slots L + i for i < length, in ascending chunks [BLOCK_E]."""
    offs_d = tl.arange(0, BLOCK_D)[None, :]
    for start in range(0, length, BLOCK_E):
        offs_e = (start + tl.arange(0, BLOCK_E))[:, None]
        mask_e = offs_e < (start + BLOCK_E if PLANTED_BUG == "whole chunk" else length)
        node = tl.load(path_ptr + offs_e, mask=mask_e, other=0)
        mask_e = mask_e & (node != offs_e)  # what lies where it belongs stays
        source, target = L + node, L + offs_e
        source_page = tl.load(table_ptr + source // S, mask=mask_e, other=0).to(tl.int64)
        target_page = tl.load(table_ptr + target // S, mask=mask_e, other=0).to(tl.int64)
        if PLANTED_BUG == "first page":
            target_page = source_page
        mask = mask_e & (offs_d < D)
        source_ptrs = pages_ptr + source_page * stride_p + source % S * stride_s + g * stride_g + offs_d
        target_ptrs = pages_ptr + target_page * stride_p + target % S * stride_s + g * stride_g + offs_d
        values = tl.load(source_ptrs, mask=mask)
        if scale_ptr is not None:
            scale_ptr_g = scale_ptr + g * scale_stride_g
            scale = tl.load(
                scale_ptr_g + source_page * scale_stride_p + source % S * scale_stride_s, mask=mask_e
            )
        tl.debug_barrier()  # other threads read what this one is about to write
        tl.store(target_ptrs, values, mask=mask)
        if scale_ptr is not None:
            tl.store(
                scale_ptr_g + target_page * scale_stride_p + target % S * scale_stride_s, scale, mask=mask_e
            )


@triton.jit
def commit_kv_kernel(
    k_pages_ptr, v_pages_ptr, table_ptr, kv_len_ptr, path_ptr, path_len_ptr, k_scale_ptr, v_scale_ptr, S, D,
    table_stride_b, path_stride_b, k_stride_p, k_stride_s, k_stride_g, v_stride_p, v_stride_s, v_stride_g,
    k_scale_stride_p, k_scale_stride_s, k_scale_stride_g, v_scale_stride_p, v_scale_stride_s,
    v_scale_stride_g, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr, PLANTED_BUG: tl.constexpr = "",
):  # fmt: skip
    """One request, KV head, and K or V."""
    b, g = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    if PLANTED_BUG == "one head":
        g = g * 0
    L, length = tl.load(kv_len_ptr + b).to(tl.int64), tl.load(path_len_ptr + b)
    table_ptr += b * table_stride_b
    path_ptr += b * path_stride_b
    if tl.program_id(2) == 0:
        move(
            k_pages_ptr, k_scale_ptr, table_ptr, path_ptr, L, length, S, D, g, k_stride_p, k_stride_s,
            k_stride_g, k_scale_stride_p, k_scale_stride_s, k_scale_stride_g, BLOCK_E, BLOCK_D, PLANTED_BUG,
        )  # fmt: skip
    else:
        move(
            v_pages_ptr, v_scale_ptr, table_ptr, path_ptr, L, length, S, D, g, v_stride_p, v_stride_s,
            v_stride_g, v_scale_stride_p, v_scale_stride_s, v_scale_stride_g, BLOCK_E, BLOCK_D, PLANTED_BUG,
        )  # fmt: skip


def commit_kv(
    k_pages: Tensor, v_pages: Tensor, page_table: Tensor, kv_len: Tensor, path: Tensor, path_len: Tensor,
    k_scale: Tensor | None = None, v_scale: Tensor | None = None, *, kv_layout: str = "paged",
) -> None:  # fmt: skip
    """Slots kv_len + path[:path_len] of every request to slots kv_len, kv_len + 1, ..., in place."""
    c = pick_config(path.size(1), k_pages.size(3))
    _launch(k_pages, v_pages, page_table, kv_len, path, path_len, k_scale, v_scale, c)


def _launch(
    k_pages: Tensor, v_pages: Tensor, page_table: Tensor, kv_len: Tensor, path: Tensor, path_len: Tensor,
    k_scale: Tensor | None, v_scale: Tensor | None, c: Config, bug: str = "",
) -> None:  # fmt: skip
    (_, s, g, d), (b, longest) = k_pages.shape, path.shape
    if k_pages.numel() == 0 or b == 0 or longest == 0:
        return
    page_table, path = page_table.contiguous(), path.contiguous()
    scale_strides = [
        0 if scale is None else scale.stride(i) for scale in (k_scale, v_scale) for i in range(3)
    ]
    commit_kv_kernel[(b, g, 2)](
        raw(k_pages), raw(v_pages), page_table, kv_len.contiguous(), path, path_len.contiguous(), k_scale,
        v_scale, s, d, page_table.stride(0), path.stride(0), *k_pages.stride()[:3], *v_pages.stride()[:3],
        *scale_strides, BLOCK_E=c.block_e, BLOCK_D=c.block_d, PLANTED_BUG=bug, num_warps=c.num_warps,
    )  # fmt: skip


def aot_cases() -> list[AotCase]:
    """Heads of 128, pages of bf16 and of e4m3."""
    c = pick_config(16, 128)
    cases = []
    for page in ("bf16", "u8"):
        constants: dict[str, object] = {"BLOCK_E": c.block_e, "BLOCK_D": c.block_d, "PLANTED_BUG": ""}
        if page == "bf16":
            constants |= {"k_scale_ptr": None, "v_scale_ptr": None}
        types = {
            "k_pages_ptr": f"*{page}", "v_pages_ptr": f"*{page}", "k_scale_ptr": "*fp32",
            "v_scale_ptr": "*fp32",
        }  # fmt: skip
        kinds = {
            name: types.get(name, "*i32" if name.endswith("_ptr") else "i32")
            for name in commit_kv_kernel.arg_names
        }
        signature = {name: "constexpr" if name in constants else kind for name, kind in kinds.items()}
        cases.append(
            AotCase(f"commit_kv-{page}", commit_kv_kernel, signature, constants, num_warps=c.num_warps)
        )
    return cases
