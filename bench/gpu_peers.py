# SPDX-License-Identifier: Apache-2.0
"""Other libraries' kernels for the same work on a GPU: those that are installed, and why others are left out.

A peer is made by `PEERS[op]` from a case's arguments; ImportError, or whatever a version does differently, is its reason.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyspec.contract import Case
from pyspec.spec.tree_attention import visible

Peer = Callable[[], Any]
PACKAGES = {"flashinfer": "flashinfer-python", "vllm": "vllm", "torchao": "torchao"}  # module: distribution


def installed() -> dict[str, str]:
    """Version of every peer library, or why it is not there."""
    found = {"torch": str(torch.__version__)}
    for module, distribution in PACKAGES.items():
        try:
            found[module] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[module] = "not installed"
    return found


def peers(op: str, case: Case) -> tuple[dict[str, Peer], dict[str, str]]:
    """Ready calls by peer, and the reason of each that is left out."""
    ready: dict[str, Peer] = {}
    left_out: dict[str, str] = {}
    for name, make in PEERS.get(op, {}).items():
        try:
            call = make(*case.args, **case.kwargs)
            call()
            torch.cuda.synchronize()
            ready[name] = call
        except (
            Exception
        ) as error:  # whatever another library's version does: it is reported, our figures go on
            left_out[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ready, left_out


def bf16_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Peer:
    """cuBLAS on bf16 rows."""
    rows, columns = x.bfloat16(), weight.bfloat16()
    return lambda: torch.nn.functional.linear(rows, columns)


def dense_of_w4a16(x: Tensor, qweight: Tensor, scales: Tensor, *args: Any, **kwargs: Any) -> Peer:
    """cuBLAS on a bf16 weight of the same shape: four times the bytes."""
    return bf16_linear(x, torch.randn(qweight.size(0), x.size(1), device=x.device))


def dense_of_rows(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Peer:
    """The same for an 8-bit weight."""
    return bf16_linear(x, torch.randn(weight.size(0), x.size(1), device=x.device))


def torch_int8(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Peer:
    """torch's int8 product, which takes more than 16 rows; without scales."""
    rows = x if x.size(0) > 16 else x.new_zeros(32, x.size(1))
    return lambda: torch._int_mm(rows, weight.t())


def torch_rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Peer:
    return lambda: torch.nn.functional.rms_norm(x, (x.size(1),), weight, eps)


def torch_silu_mul(gate_up: Tensor) -> Peer:
    gate, up = gate_up.chunk(2, 1)
    return lambda: torch.nn.functional.silu(gate) * up


def torchao_int4(x: Tensor, qweight: Tensor, scales: Tensor, *args: Any, group_size: int) -> Peer:
    """torchao's 4-bit weight-only linear on a weight of the same shape."""
    quantization = importlib.import_module("torchao.quantization")
    layer = torch.nn.Linear(x.size(1), qweight.size(0), bias=False, device=x.device, dtype=torch.bfloat16)
    quantization.quantize_(layer, quantization.Int4WeightOnlyConfig(group_size=group_size))
    rows = x.bfloat16()
    return lambda: layer(rows)


def vllm_marlin(x: Tensor, qweight: Tensor, scales: Tensor, *args: Any, group_size: int) -> Peer:
    """Marlin on the same nibbles (zero point 8), repacked once; f16."""
    kernels = importlib.import_module("vllm._custom_ops")
    utils = importlib.import_module("vllm.model_executor.layers.quantization.utils.marlin_utils")
    uint4 = importlib.import_module("vllm.scalar_type").scalar_types.uint4b8
    n, k = qweight.size(0), x.size(1)
    gptq = gptq_words(qweight)
    none = torch.empty(0, dtype=torch.int32, device=x.device)
    packed = kernels.gptq_marlin_repack(gptq, none, k, n, 4)
    permuted = utils.marlin_permute_scales(scales.t().contiguous().half(), k, n, group_size)
    workspace, rows = utils.marlin_make_workspace_new(x.device), x.half()
    return lambda: utils.apply_gptq_marlin_linear(
        input=rows, weight=packed, weight_scale=permuted, weight_zp=none, g_idx=none, g_idx_sort_indices=none,
        workspace=workspace, wtype=uint4, output_size_per_partition=n, input_size_per_partition=k, is_k_full=True,
    )  # fmt: skip


def gptq_words(qweight: Tensor) -> Tensor:
    """Rows of nibbles [N, K/2] u8 as GPTQ has them: [K/8, N] i32, word r holding k = 8 r .. 8 r + 7, the lowest bits first."""
    n, k = qweight.size(0), 2 * qweight.size(1)
    nibbles = torch.stack([qweight & 15, qweight >> 4], 2).view(n, k // 8, 8).long()
    words = (nibbles << 4 * torch.arange(8, device=qweight.device)).sum(2)
    return words.to(torch.int32).t().contiguous()  # keeps the low 32 bits


def torch_sdpa(*args: Any, scale: float, **kwargs: Any) -> Peer:
    """torch's attention over contiguous keys of one request, the tree as a mask."""
    query, keys, values, mask = _dense(*args)
    attention = torch.nn.functional.scaled_dot_product_attention
    return lambda: attention(query, keys, values, attn_mask=mask, scale=scale, enable_gqa=True)


def torch_flex(*args: Any, scale: float, **kwargs: Any) -> Peer:
    """torch's FlexAttention, compiled, over the same."""
    flex = importlib.import_module("torch.nn.attention.flex_attention")
    query, keys, values, mask = _dense(*args)
    blocks = flex.create_block_mask(
        lambda b, h, i, j: mask[i, j], 1, 1, query.size(2), keys.size(2), device=query.device
    )
    attention = torch.compile(flex.flex_attention)
    return lambda: attention(query, keys, values, block_mask=blocks, scale=scale, enable_gqa=True)


def flashinfer_paged(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, kv_len: Tensor, cu_t: Tensor, parents: Tensor,
    *args: Any, scale: float, **kwargs: Any,
) -> Peer:  # fmt: skip
    """FlashInfer's paged attention of a batch, trees as a mask; planned once."""
    flashinfer = importlib.import_module("flashinfer")
    bounds, lengths, size = cu_t.tolist(), kv_len.tolist(), k_pages.size(1)
    trees = [parents[a:b].tolist() for a, b in zip(bounds, bounds[1:], strict=False)]
    totals = [L + len(tree) for L, tree in zip(lengths, trees, strict=True)]
    counts = [-(-total // size) for total in totals]
    pages = torch.cat([page_table[b, :count] for b, count in enumerate(counts)]).int()
    indptr = torch.tensor([0, *counts], device=q.device).cumsum(0).int()
    last = torch.tensor([(total - 1) % size + 1 for total in totals], device=q.device).int()
    masks = [visible(L, tree, 0).flatten() for L, tree in zip(lengths, trees, strict=True)]
    workspace = torch.empty(128 << 20, dtype=torch.uint8, device=q.device)
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
    heads, head_dim = q.shape[1:]
    wrapper.plan(
        cu_t, indptr, pages, last, heads, k_pages.size(2), head_dim, size,
        custom_mask=torch.cat(masks).to(q.device), sm_scale=scale, q_data_type=torch.bfloat16, kv_data_type=k_pages.dtype,
    )  # fmt: skip
    query = q.bfloat16()
    return lambda: wrapper.run(query, (k_pages, v_pages))


def _dense(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, kv_len: Tensor, cu_t: Tensor, parents: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Query [1, H, n, D], keys and values [1, G, L + n, D] and mask of the one request of a call."""
    if kv_len.numel() != 1:
        raise ValueError(f"kv_len must be of one request, got {kv_len.numel()}")
    L, size = int(kv_len), k_pages.size(1)
    slots = torch.arange(L + q.size(0), device=q.device)
    keys, values = (
        pages[page_table[0, slots // size].long(), slots % size].transpose(0, 1)[None].contiguous()
        for pages in (k_pages, v_pages)
    )
    mask = visible(L, parents.tolist(), 0).to(q.device)
    return q.transpose(0, 1)[None].to(keys.dtype).contiguous(), keys, values, mask


PEERS: dict[str, dict[str, Callable[..., Peer]]] = {
    "rms_norm": {"torch": torch_rms_norm},
    "silu_mul": {"torch": torch_silu_mul},
    "linear": {"torch bf16": bf16_linear},
    "w4a16_linear": {"torch bf16": dense_of_w4a16, "torchao int4": torchao_int4, "vllm marlin": vllm_marlin},
    "w8a8_linear": {"torch int8": torch_int8},
    "fp8_linear": {"torch bf16": dense_of_rows},
    "tree_attention": {
        "torch sdpa": torch_sdpa, "torch flex": torch_flex, "flashinfer": flashinfer_paged,
    },
}  # fmt: skip
