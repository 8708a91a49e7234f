# SPDX-License-Identifier: Apache-2.0
"""The decoder of the Llama family as a step program: Llama 2/3, Mistral, SmolLM2, Qwen2, Qwen3 and Gemma 3.

They differ only by flags of ModelConfig: biases, norms on q and k, norms behind a block, sliding layers, activation, scales.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspec.models.config import ModelConfig
from pyspec.models.program import Program, Ref, Tracer, columns


def decoder(config: ModelConfig, taps: Sequence[int] = (), layers: Sequence[int] | None = None) -> Program:
    """Trace one step: T tokens in, logits of the R rows that the batch asks for out.

    taps: layers in [0, num_layers], each once. The output "taps" [T, len(taps) * hidden] then holds, in their order, the residual
    stream that enters each of them (num_layers: what enters the final norm). layers: those that are computed, ascending; None for
    all of them. The KV of the i-th lies in layer i of the cache. ValueError for other taps or layers.
    """
    kept = range(config.num_layers) if layers is None else tuple(layers)
    if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= config.num_layers:
        raise ValueError(
            f"decoder: layers must ascend within [0, {config.num_layers}), got {list(layers or ())}"
        )
    if not all(0 <= i <= config.num_layers for i in taps) or len(set(taps)) != len(taps):
        raise ValueError(
            f"decoder: taps must be distinct layers in [0, {config.num_layers}], got {list(taps)}"
        )
    trace = Tracer()
    x = trace.buffer("x", config.hidden_size)
    trace.op("embedding", (), x, "embed", scale=config.embed_scale)
    delta: Ref | None = None
    tapped = trace.buffer("taps", len(taps) * config.hidden_size) if taps else None

    def tap(i: int) -> None:
        if tapped is not None and i in taps:
            place = columns(tapped, taps.index(i) * config.hidden_size, config.hidden_size)
            trace.op("copy", (x,), place)

    for place, i in enumerate(kept):
        h = normalise(trace, config, x, delta, f"layers.{i}.attn_norm")
        tap(i)
        delta = attention(trace, config, i, h, place)
        h = normalise(trace, config, x, delta, f"layers.{i}.mlp_norm")
        delta = feed_forward(trace, config, i, h)
    h = normalise(trace, config, x, delta, "final_norm")
    tap(config.num_layers)
    rows = trace.op("gather_rows", (h,), trace.buffer("rows", config.hidden_size, "R"))
    head = "embed" if config.tie_embeddings else "lm_head"
    logits = trace.op("linear", (rows,), trace.buffer("logits", config.vocab_size, "R"), head, parts=1)
    if config.logit_softcap:
        trace.op("softcap", (logits,), logits, cap=config.logit_softcap)
    return trace.program(logits, outputs=() if tapped is None else (tapped,))


def normalise(trace: Tracer, config: ModelConfig, x: Ref, delta: Ref | None, weight: str) -> Ref:
    """Add the last block's result to the residual stream, if there is one, and normalise."""
    out = trace.buffer("h", config.hidden_size)
    if delta is None:
        return trace.op("rms_norm", (x,), out, weight, eps=config.rms_eps)
    return trace.op("add_rms_norm", (x, delta), out, weight, eps=config.rms_eps)


def attention(trace: Tracer, config: ModelConfig, i: int, h: Ref, place: int | None = None) -> Ref:
    """Attention of layer i over normalised rows h; the result is to be added to the residual stream.

    place: the layer of the cache where its KV lies, by default i.
    """
    place = i if place is None else place
    heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
    layer, sliding = f"layers.{i}.", config.layer_types[i] == "sliding"
    qkv = trace.buffer("qkv", (heads + 2 * kv_heads) * dim)
    biases = [layer + name for name in ("q_bias", "k_bias", "v_bias")] if config.qkv_bias else []
    projections = [layer + name for name in ("q_proj", "k_proj", "v_proj")]
    trace.op("linear", (h,), qkv, *projections, *biases, parts=3)
    q, k = columns(qkv, 0, heads * dim), columns(qkv, heads * dim, kv_heads * dim)
    v = columns(qkv, (heads + kv_heads) * dim, kv_heads * dim)
    if config.qk_norm:
        trace.op("rms_norm", (q,), q, layer + "q_norm", eps=config.rms_eps, heads=heads)
        trace.op("rms_norm", (k,), k, layer + "k_norm", eps=config.rms_eps, heads=kv_heads)
    table = "rope_sliding" if sliding else "rope_full"
    trace.op("rope", (q,), q, table, heads=heads)
    trace.op("append_kv", (k, v), k, table, layer=place, heads=kv_heads)
    attended = trace.op(
        "tree_attention", (q,), trace.buffer("attended", heads * dim), layer=place, heads=heads,
        scale=config.attn_scale, softcap=config.attn_softcap, window=config.sliding_window if sliding else 0,
    )  # fmt: skip
    out = trace.op(
        "linear", (attended,), trace.buffer("delta", config.hidden_size), layer + "o_proj", parts=1
    )
    return _post_norm(trace, config, out, layer + "post_attn_norm")


def feed_forward(trace: Tracer, config: ModelConfig, i: int, h: Ref) -> Ref:
    """The gated feed-forward block of layer i over normalised rows h; the result is to be added to the residual stream."""
    layer, size = f"layers.{i}.", config.intermediate_size
    gate_up = trace.buffer("gate_up", 2 * size)
    trace.op("linear", (h,), gate_up, layer + "gate_proj", layer + "up_proj", parts=2)
    op = "silu_mul" if config.activation == "silu" else "gelu_mul"
    hidden = trace.op(op, (gate_up,), trace.buffer("hidden", size))
    out = trace.op(
        "linear", (hidden,), trace.buffer("delta", config.hidden_size), layer + "down_proj", parts=1
    )
    return _post_norm(trace, config, out, layer + "post_mlp_norm")


def _post_norm(trace: Tracer, config: ModelConfig, out: Ref, weight: str) -> Ref:
    if not config.post_norms:
        return out
    return trace.op("rms_norm", (out,), out, weight, eps=config.rms_eps)
