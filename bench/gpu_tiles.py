# SPDX-License-Identifier: Apache-2.0
"""Why each GPU kernel's blocks have the size they have: one line each, which `python -m bench gpu_static` prints beside the occupancy."""

from __future__ import annotations

_ONE_ROW = "one block of 512 threads a row of V values: a pass is bound by the exponentials, which 16 warps keep busy"
_LINEAR = "the widest of 16, 32, 64 channels that gives nearly every SM a block, by 8 rows or 64; 40 to 64 KB of weights in flight"
_ELEMENTS = "four values a thread where rows are aligned, 128 to 256 threads, enough blocks for any size"
_TRITON_LINEAR = "64 or 128 channels so that 264 programs fill the machine with parts of K, rows by powers of two up to 128"
_TRITON_ROW = "one program a row in blocks of 4 values a thread: more, with their float64 noise, would not fit the registers"
_TRITON_ELEMENTS = "one program a row or a block of it, as wide as a power of two holds"

# By function of a CUDA kernel, by file of a Triton kernel.
TILES = {
    "attend": "as few tiles of rows a request as shared memory allows, but enough to fill the SMs: queries, three stages of K and V, totals",
    "plan_step": "one block of 512 threads lists the work of a step once for all layers",
    "linear_tile": _LINEAR,
    "multiply_f32": "4 channels by 8 rows a warp in registers: f32 products run on the CUDA cores",
    "multiply_few_rows": "16 channels by 8 rows of 4 warps that share a group of K: few rows are bound by the weights",
    "multiply_many_rows": "one warp of 32 channels by 64 rows: its sums fill the registers, many blocks fill the SM",
    "append_rows": "a warp or less a head's row, up to 256 threads a token: no thread idles at small heads",
    "move_paths": "128 threads of the widest vector that every row is a multiple of; moves of one page stay in a block",
    "rotate_heads": "128 threads of as many heads as fit: the table is read once for all of them",
    "norm_rows": "a block a row, a thread 4 values at a time, up to 512 threads: one pass from memory, one from L1",
    "quantise_rows": "a block a row as norm_rows: the row's largest value must be known before it is rounded",
    "quantise_groups": "8 threads a group of 32 values: its largest is a shuffle away",
    "dequantise_rows": "256 threads a row of the table: few rows are asked for at a time",
    "edit_parts": "8192 tokens of a row, 512 threads: many blocks share a long row, and a block copies more than the history it reads",
    "copy_rows": _ELEMENTS,
    "gate_rows": _ELEMENTS,
    "cap_elements": _ELEMENTS,
    "sample_rows": _ONE_ROW,
    "walk_rows": _ONE_ROW,
    "pick_nodes": _ONE_ROW,
    "follow_picks": "as pick_nodes, whose shared memory it has: one block a request",
    "best_children": _ONE_ROW,
    "draw_rows": _ONE_ROW,
    "walk_drawn": "one block of 512 threads a request: its passes over rows follow one another",
    "merge_children": "as best_children: one block a request merges the candidates of its nodes",
    "kernels/append_kv": "one program a token and heads of up to 1024 values, 8 a thread: K and V, and a row's scale is a reduction away",
    "kernels/build_tree": _TRITON_ROW,
    "kernels/commit_kv": "one program a request, head, and K or V: up to 16 nodes of the path at a time, all read before any is written",
    "kernels/dots": "up to 1024 channels of a row: the parts of K are read in order",
    "kernels/draw_children": _TRITON_ROW,
    "kernels/edit_logits": "4096 tokens of a row, 4 warps: as edit_parts",
    "kernels/embedding": _TRITON_ELEMENTS,
    "kernels/fp8_linear": _TRITON_LINEAR,
    "kernels/linear": _TRITON_LINEAR,
    "kernels/prefix_groups": "one program a request compares 256 columns of its page table at a time",
    "kernels/quant_embedding": "one program a row, a power of two of its groups",
    "kernels/quant_linear": "16 to 64 channels by up to 64 rows: exact sums leave the cut free, few channels fill the machine",
    "kernels/quantize_activations": "one program a row of groups",
    "kernels/rms_norm": "one program a row, as wide as a power of two holds: up to 16 warps",
    "kernels/rope": "one program a token and a few heads",
    "kernels/sample": _TRITON_ROW,
    "kernels/silu_mul": _TRITON_ELEMENTS,
    "kernels/softcap": _TRITON_ELEMENTS,
    "kernels/tree_attention": "64 rows, what wgmma and tcgen05 need, fewer where halves of large heads would spill; 32 slots a step, the next on their way",
    "kernels/verify_tree": _TRITON_ROW,
    "kernels/verify_drawn": "one program a row for the weights, one a request for the walk, one a place of the path for the logprobs",
    "kernels/w4a16_linear": _TRITON_LINEAR,
    "kernels/w8a8_linear": "16 to 64 channels for few rows, so that many programs fetch the weight; 128 by 128 for many",
}  # fmt: skip


def tile_of(source: str, name: str) -> str:
    """The line of a kernel of csrc/cuda/<file>.cu or kernels/<file>.py; KeyError if there is none."""
    return TILES[source.removesuffix(".py") if source.endswith(".py") else name.split("<")[0]]
