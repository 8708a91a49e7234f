# SPDX-License-Identifier: Apache-2.0
# over the limit: one function per op, each with its documentation, where users look for all of them.
"""The low-level API: one function per op. Shapes by the letters of docs/structure.md; contracts in pyspec/spec.

Every function takes `backend=None` (the best that can run the call) or a name ("cpu", "cuda", "triton", "spec"), which is
refused with every backend's reason if it cannot. Bad arguments raise ValueError or TypeError before anything runs.

GPU kernels cannot raise for a bad value: for CUDA tensors these functions copy indices, lengths and parameters to the host and
check them there first, which waits for the GPU. While a CUDA graph is captured they check shapes and dtypes alone, and so do
`torch.ops.pyspec.*` and the plans of pyspec.plans at every run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyspec import spec
from pyspec.backends import call

__all__ = [
    "add_rms_norm",
    "append_kv",
    "build_tree",
    "commit_kv",
    "draw_children",
    "edit_logits",
    "embedding",
    "fp8_linear",
    "gelu_mul",
    "linear",
    "linear_packed",
    "pack_int8_weight",
    "pack_quant_weight",
    "pack_weight",
    "quant_embedding",
    "quant_linear",
    "quantize_activations",
    "rms_norm",
    "rms_norm_quantize",
    "rope",
    "sample",
    "silu_mul",
    "softcap",
    "tile_kv",
    "tree_attention",
    "verify_drawn",
    "verify_tree",
    "w4a16_linear",
    "w8a8_linear",
    "w8a8_linear_packed",
]


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6, backend: str | None = None) -> Tensor:
    """Root mean square normalisation of the rows of x [M, K] f32, scaled by weight [K] f32; returns [M, K] f32."""
    return call(spec.rms_norm, (x, weight), {"eps": eps}, backend)


def add_rms_norm(
    residual: Tensor, delta: Tensor, weight: Tensor, *, eps: float = 1e-6, backend: str | None = None
) -> Tensor:
    """residual [M, K] f32 += delta [M, K] f32 in place; returns rms_norm of the sum, [M, K] f32."""
    return call(spec.add_rms_norm, (residual, delta, weight), {"eps": eps}, backend)


def rms_norm_quantize(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None = None,
    *,
    eps: float = 1e-6,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """rms_norm of x [M, K] f32 as int8 rows [M, K] and scales [M] f32 (max |row| / 127) for w8a8_linear.

    With residual [M, K] f32: residual += x in place, and the sum is normalised.
    """
    return call(spec.rms_norm_quantize, (x, weight, residual), {"eps": eps}, backend)


def rope(
    x: Tensor, positions: Tensor, rope_table: Tensor, *, interleaved: bool = False, backend: str | None = None
) -> Tensor:
    """Rotary position embedding of x [T, H, D] f32|bf16|f16 at positions [T] i32; returns the same shape and dtype.

    rope_table [X, Y] f32: for every position Y/2 cosines, then Y/2 sines; Y <= D is rotated, the rest copied. Pairs are
    (i, i + Y/2), or (2i, 2i + 1) if interleaved. Raises ValueError for a position outside the table.
    """
    return call(spec.rope, (x, positions, rope_table), {"interleaved": interleaved}, backend)


def append_kv(
    k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor, positions: Tensor, rope_table: Tensor | None = None,
    k_scale: Tensor | None = None, v_scale: Tensor | None = None,
    *, interleaved: bool = False, kv_layout: str = "paged", backend: str | None = None,
) -> None:  # fmt: skip
    """RoPE on k [T, G, D] (if a table is given), and k and v written to slots [T] i64 of the pages [P, S, G, D] in place.

    A slot is page * S + offset; slots must differ. Pages of f8|i8 get a scale per token and KV head in k_scale and v_scale [P, S, G]
    f32: value = page * scale. Raises ValueError, before anything is written, for a slot or position out of range.
    """
    args = (k, v, k_pages, v_pages, slots, positions, rope_table, k_scale, v_scale)
    call(spec.append_kv, args, {"interleaved": interleaved, "kv_layout": kv_layout}, backend)


def commit_kv(
    k_pages: Tensor, v_pages: Tensor, page_table: Tensor, kv_len: Tensor, path: Tensor, path_len: Tensor,
    k_scale: Tensor | None = None, v_scale: Tensor | None = None,
    *, kv_layout: str = "paged", backend: str | None = None,
) -> None:  # fmt: skip
    """Move the KV (and scales of f8|i8) of the accepted nodes path[b, :path_len[b]] behind the kv_len[b] committed tokens, in place.

    path [B, E] i32 strictly increasing, page_table [B, W] i32, kv_len and path_len [B] i32. Raises ValueError, before
    anything is moved, for a path that does not increase or leaves the table.
    """
    call(
        spec.commit_kv,
        (k_pages, v_pages, page_table, kv_len, path, path_len, k_scale, v_scale),
        {"kv_layout": kv_layout},
        backend,
    )


def tile_kv(
    k_pages: Tensor, v_pages: Tensor, *, inverse: bool = False, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Copies of k_pages and v_pages [P, S, G, D] in the tiled layout (or back to the paged one); S % 16 == 0, D even."""
    return call(spec.tile_kv, (k_pages, v_pages), {"inverse": inverse}, backend)


def tree_attention(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, kv_len: Tensor, cu_t: Tensor, parents: Tensor,
    k_scale: Tensor | None = None, v_scale: Tensor | None = None, sinks: Tensor | None = None,
    *, scale: float, window: int = 0, softcap: float = 0.0, kv_layout: str = "paged", backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention of the nodes of B token trees, q [T, H, D], to a paged KV cache [P, S, G, D]; returns out [T, H, D] like q and lse [T, H] f32.

    Request b has kv_len[b] committed tokens in its slots (page_table [B, W] i32) and the nodes cu_t[b] .. cu_t[b+1], whose KV is already
    in the slots behind them. parents [T] i32 is local: -1 for the root, parents[i] < i; -1, 0, 1, ... is a chain. A node sees the committed
    tokens, its ancestors and itself (within `window` positions if > 0). Scores are scaled by `scale`, then capped by softcap * tanh(s / softcap)
    if softcap > 0; lse is the natural logarithm of the sum of their exponentials. `kv_layout` is "paged", or "tiled" (see tile_kv).
    Pages of f8|i8 have k_scale and v_scale [P, S, G] f32: value = page * scale. sinks [H] f32 are scores that every row of a head has
    besides, without values.

    A row's bits depend on its query and the keys it sees alone. Raises ValueError for unsorted or cyclic parents, offsets, lengths or
    pages out of range, before anything is launched.
    """
    args = (q, k_pages, v_pages, page_table, kv_len, cu_t, parents, k_scale, v_scale, sinks)
    kwargs = {"scale": scale, "window": window, "softcap": softcap, "kv_layout": kv_layout}
    return call(spec.tree_attention, args, kwargs, backend)


def sample(
    logits: Tensor, positions: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, typical_p: Tensor,
    seed: Tensor, stream: Tensor, edited: Tensor | None = None,
    *, num_logprobs: int = 0, with_logprobs: bool = True, backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """One token per row of logits [T, V] f32, the same bits on every backend.

    positions [T] i32 (absolute position of the token to be emitted), temperature [T] f32 (0 greedy), top_k [T] i32 (0 off),
    top_p [T] f32 (1 off), min_p [T] f32 (0 off), typical_p [T] f32 (1 off), seed [T] i64, stream [T] i32 (sample index of the
    request). edited [T, V] f32 are the rows to pick from where they are not `logits` (see edit_logits). Returns token [T] i32,
    logprob [T] f32 (of `logits`; 0 without with_logprobs), top_tokens [T, N] i32, top_logprobs [T, N] f32, N = num_logprobs.
    A row without a finite value has no law: token 0, and every logprob NaN.
    """
    args = (logits, positions, temperature, top_k, top_p, min_p, typical_p, seed, stream, edited)
    return call(spec.sample, args, {"num_logprobs": num_logprobs, "with_logprobs": with_logprobs}, backend)


def verify_tree(
    logits: Tensor, tokens: Tensor, parents: Tensor, cu_t: Tensor, position: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor,
    min_p: Tensor, typical_p: Tensor, seed: Tensor, stream: Tensor, edited: Tensor | None = None,
    *, max_path: int, num_logprobs: int = 0, with_logprobs: bool = True, backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Walk each request's token tree with the tokens of plain decoding; the tree cannot change what is emitted.

    logits [T, V] f32 (a row per node), tokens [T] i32, parents [T] i32 (local, -1 for the root), cu_t [B+1] i32,
    position [B] i32 (absolute position of the root); the other tensors [B] and edited [T, V] as in `sample`. Returns path [B, E] i32
    (local indices of accepted nodes, root first), path_len [B] i32, emitted [B, E] i32 (the last one is the next root),
    logprobs [B, E] f32, top_tokens [B, E, N] i32, top_logprobs [B, E, N] f32; E = max_path, N = num_logprobs.
    """
    laws = (position, temperature, top_k, top_p, min_p, typical_p, seed, stream)
    kwargs = {"max_path": max_path, "num_logprobs": num_logprobs, "with_logprobs": with_logprobs}
    return call(spec.verify_tree, (logits, tokens, parents, cu_t, *laws, edited), kwargs, backend)


def build_tree(
    logits: Tensor, node_score: Tensor, cu_t: Tensor, position: Tensor, temperature: Tensor, seed: Tensor, stream: Tensor,
    ids: Tensor | None = None, *, width: int, rule: str = "shared_noise", backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Grow B token trees by one level: the `width` best children of each request's frontier nodes.

    logits [T, V] f32 (the draft's row of each frontier node), node_score [T] f32 (log of its path's probability; -inf: not a node),
    cu_t [B+1] i32, position [B] i32 (absolute position of the tokens drawn here), temperature [B] f32, seed [B] i64, stream [B] i32
    as in `sample`. `rule` is "deterministic" (a child's score: its node's + log q) or "shared_noise" (+ log softmax(log q + noise),
    which the verification's noise makes likelier to be right). ids [V] i32, ascending: the tokens that the columns stand for, where
    the draft has a part of the vocabulary. Returns token, parent (index in the request's frontier) [B, width]
    i32 and score [B, width] f32, best first; -1, -1, -inf where there are fewer. The scores, flat, are the next level's node_score.
    """
    args = (logits, node_score, cu_t, position, temperature, seed, stream, ids)
    return call(spec.build_tree, args, {"width": width, "rule": rule}, backend)


def draw_children(
    logits: Tensor, count: Tensor, temperature: Tensor, seed: Tensor, stream: Tensor, step: Tensor, node: Tensor,
    *, width: int, rule: str = "without_replacement", backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Draw the children of T frontier nodes from the draft's law softmax(logits / temperature), with fresh randomness.

    logits [T, V] f32 (a row per node), count [T] i32 (children of each, at most width), temperature [T] f32, seed [T] i64, stream [T]
    i32, step [T] i32 (counts the steps of the request), node [T] i32 (index of the node in its tree). `rule` is "iid",
    "without_replacement" or "hybrid" (the first child drawn, then the likeliest others). Returns token [T, width] i32, siblings in
    verification order, -1 where there is none, and log_q [T, width] f32, the log of each token's probability in the draft's law.
    """
    args = (logits, count, temperature, seed, stream, step, node)
    return call(spec.draw_children, args, {"width": width, "rule": rule}, backend)


def verify_drawn(
    logits: Tensor, tokens: Tensor, parents: Tensor, cu_t: Tensor, drawn: Tensor, draft_logits: Tensor, draft_row: Tensor,
    draft_temperature: Tensor, step: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor,
    typical_p: Tensor, seed: Tensor, stream: Tensor, edited: Tensor | None = None,
    *, walk: str = "traversal", max_path: int, num_logprobs: int = 0, with_logprobs: bool = True, backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Verify each request's token tree by how its nodes were drawn: what is emitted follows the target's law exactly.

    As verify_tree, with fresh randomness keyed by step [B] i32 in place of the noise of positions. drawn [T] i32: 0 chosen without
    randomness, 1 iid, 2 without replacement (the first child of "hybrid": 2, the others 0). draft_logits [R, V] f32, draft_row [T] i32
    (the row that the node's children were drawn from, -1: none), draft_temperature [B] f32. `walk` is "traversal" (block verification
    on a chain), "top_down" or "target" (needs neither drawn nor the draft's rows; exact for any tree). Results as verify_tree.
    """
    trees = (logits, tokens, parents, cu_t, drawn, draft_logits, draft_row, draft_temperature)
    laws = (step, temperature, top_k, top_p, min_p, typical_p, seed, stream)
    logprobs = {"num_logprobs": num_logprobs, "with_logprobs": with_logprobs}
    return call(
        spec.verify_drawn, (*trees, *laws, edited), {"walk": walk, "max_path": max_path, **logprobs}, backend
    )


def edit_logits(
    logits: Tensor, tokens: Tensor, parents: Tensor, cu_t: Tensor, repetition: Tensor, presence: Tensor, frequency: Tensor,
    history: Tensor, history_count: Tensor, cu_history: Tensor, bias_token: Tensor, bias: Tensor, cu_bias: Tensor,
    mask: Tensor | None, mask_row: Tensor, *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """Logits [T, V] f32 of token trees with penalties, biases and masks, every node's by its own path: the `edited` of verify_tree.

    tokens [T] i32, parents [T] i32, cu_t [B+1] i32 as in verify_tree; repetition (1 off), presence and frequency (0 off) [B] f32.
    history [N] i32 (distinct tokens of each request's prompt and output), history_count [N] i32 (how often in the output, the root
    included), cu_history [B+1] i32; bias_token [J] i32 (distinct in a request), bias [J] f32 (-inf bans), cu_bias [B+1] i32. mask
    [R, ceil(V / 32)] i32: a bit per token, 1 if allowed; mask_row [T] i32: each node's, -1 for none. Returns [T, V] f32.
    """
    penalties = (repetition, presence, frequency, history, history_count, cu_history)
    args = (logits, tokens, parents, cu_t, *penalties, bias_token, bias, cu_bias, mask, mask_row)
    return call(spec.edit_logits, args, {}, backend)


def embedding(ids: Tensor, weight: Tensor, *, scale: float = 1.0, backend: str | None = None) -> Tensor:
    """Rows ids [T] i32 of weight [V, K] f32|bf16|f16, widened and times scale; returns [T, K] f32."""
    return call(spec.embedding, (ids, weight), {"scale": scale}, backend)


def fp8_linear(
    x: Tensor, weight: Tensor, scale: Tensor, *, granularity: str = "channel", backend: str | None = None
) -> Tensor:
    """x [M, K] f32|bf16 times weight [N, K] f8 (e4m3) and its scales, f32; returns [M, N] f32.

    granularity "tensor": scale [1, 1]; "channel": [N, 1]; "block" of 128 channels and 128 k: [N/128, K/128] rounded up.
    """
    return call(spec.fp8_linear, (x, weight, scale), {"granularity": granularity}, backend)


def gelu_mul(gate_up: Tensor, *, backend: str | None = None) -> Tensor:
    """GELU (tanh approximation) of the first half of the columns of gate_up [M, N] f32 times the second; returns [M, N/2] f32."""
    return call(spec.gelu_mul, (gate_up,), {}, backend)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """x [M, K] f32|bf16 times the transpose of weight [N, K] f32|bf16, plus bias [N] f32; returns [M, N] f32.

    The order of sums depends on N and K alone. Packs the weight in every call: see pack_weight and linear_packed.
    """
    return call(spec.linear, (x, weight, bias), {}, backend)


def linear_packed(
    x: Tensor, packed: Tensor, bias: Tensor | None = None, *, num_rows: int, backend: str | None = None
) -> Tensor:
    """linear with the num_rows = N rows of a weight as pack_weight gives them: the same bits; returns [M, N] f32."""
    return call(spec.linear_packed, (x, packed, bias), {"num_rows": num_rows}, backend)


def pack_quant_weight(qweight: Tensor, *, format: str, backend: str | None = None) -> Tensor:
    """GGUF rows [N, Y] u8 of q4_0|q4_1|q5_0|q8_0|q4_k|q6_k as [N/16 rounded up, Z] u8 for quant_linear and quant_embedding.

    The layout is in pyspec/spec/quant_formats.py. K-quant scales are rounded by at most 2^-11.
    """
    return call(spec.pack_quant_weight, (qweight,), {"format": format}, backend)


def pack_int8_weight(weight: Tensor, *, backend: str | None = None) -> Tensor:
    """weight [N, K] i8 as [N/16 rounded up, 16 K with K rounded up to 64] u8 for w8a8_linear_packed: exact."""
    return call(spec.pack_int8_weight, (weight,), {}, backend)


def pack_weight(weight: Tensor, *, backend: str | None = None) -> Tensor:
    """weight [N, K] f32|bf16 as [N/16 rounded up, 16 K with K rounded up to even] for linear_packed; a copy."""
    return call(spec.pack_weight, (weight,), {}, backend)


def quant_embedding(
    ids: Tensor, qweight: Tensor, *, format: str, layout: str = "rows", num_rows: int = 0, scale: float = 1.0,
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    """Rows ids [T] i32 of a quantised table, dequantised and times scale; returns [T, K] f32. Arguments as in quant_linear."""
    kwargs = {"format": format, "layout": layout, "num_rows": num_rows, "scale": scale}
    return call(spec.quant_embedding, (ids, qweight), kwargs, backend)


def quant_linear(
    x: Tensor, qweight: Tensor, bias: Tensor | None = None, *, format: str, layout: str = "rows", num_rows: int = 0,
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    """x [M, K] f32, quantised on the fly to int8 by groups of 32, times a quantised weight, plus bias [N] f32; returns [M, N] f32.

    qweight: GGUF rows [N, Y] u8 (layout "rows", packed in every call), or pack_quant_weight's result (layout "packed", with
    num_rows = N): the same bits. The order of sums depends on N and K alone.
    """
    kwargs = {"format": format, "layout": layout, "num_rows": num_rows}
    return call(spec.quant_linear, (x, qweight, bias), kwargs, backend)


def quantize_activations(x: Tensor, *, backend: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """x [M, K] f32 as int8 [M, K], scales [M, K/32] f32 (amax / 127 of a group of 32) and sums [M, K/32, 2] i32 of its halves."""
    return call(spec.quantize_activations, (x,), {}, backend)


def silu_mul(gate_up: Tensor, *, backend: str | None = None) -> Tensor:
    """SiLU of the first half of the columns of gate_up [M, N] f32 times the second half; returns [M, N/2] f32."""
    return call(spec.silu_mul, (gate_up,), {}, backend)


def w4a16_linear(
    x: Tensor, qweight: Tensor, scales: Tensor, zeros: Tensor | None = None, g_idx: Tensor | None = None, *,
    group_size: int, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """x [M, K] f32|bf16 times a 4-bit weight; returns [M, N] f32.

    qweight [N, K/2] u8 (low nibble: even k), scales and zeros [N, J] f16|bf16|f32 (zero points 8 without zeros), group_size
    32|64|128|-1 (one group), g_idx [K] i32 the group of each k where they are not neighbours (act-order).
    """
    args = (x, qweight, scales, zeros, g_idx)
    return call(spec.w4a16_linear, args, {"group_size": group_size}, backend)


def w8a8_linear(
    x: Tensor, weight: Tensor, x_scale: Tensor, w_scale: Tensor, *,
    out_dtype: torch.dtype = torch.float32, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """x [M, K] i8 times weight [N, K] i8 in exact integers, times x_scale [M] and w_scale [N] f32; returns [M, N] out_dtype."""
    return call(spec.w8a8_linear, (x, weight, x_scale, w_scale), {"out_dtype": out_dtype}, backend)


def w8a8_linear_packed(
    x: Tensor, packed: Tensor, x_scale: Tensor, w_scale: Tensor, *,
    out_dtype: torch.dtype = torch.float32, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """w8a8_linear with a weight as pack_int8_weight gives it: the same bits; returns [M, N] out_dtype."""
    return call(spec.w8a8_linear_packed, (x, packed, x_scale, w_scale), {"out_dtype": out_dtype}, backend)


def softcap(x: Tensor, *, cap: float, backend: str | None = None) -> Tensor:
    """cap * tanh(x / cap) of x [M, K] f32, elementwise; ValueError unless cap is positive and finite."""
    return call(spec.softcap, (x,), {"cap": cap}, backend)
