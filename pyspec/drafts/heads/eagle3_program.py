# SPDX-License-Identifier: Apache-2.0
"""An EAGLE-3 head as step programs; what it computes is written in eagle3_config.py."""

from __future__ import annotations

from pyspec.drafts.heads.eagle3_config import Eagle3Config
from pyspec.models.decoder import attention, feed_forward, normalise
from pyspec.models.program import Program, Ref, Tracer, columns


def eagle3_program(config: Eagle3Config, from_features: bool) -> Program:
    """Trace one step of the head: T entries in, logits [R, draft vocabulary] of the rows that the batch asks for out.

    The batch's tokens are those at the positions behind the features; its positions count entries, the first one 0. The one
    input is the features [T, taps * target_hidden_size] of committed tokens (from_features), or else, for entries that follow
    drafted ones, the output [T, hidden] of those. That is the one output.
    """
    layer, trace = config.layer, Tracer()
    hidden, eps = layer.hidden_size, layer.rms_eps
    embedded = trace.op("embedding", (), trace.buffer("embedded", hidden), "embed", scale=1.0)
    x = trace.buffer("x", hidden)
    fused = trace.buffer("fused", hidden) if config.norm_before_residual else x
    given = _fuse(trace, config, fused) if from_features else fused
    wide = trace.buffer("wide", 2 * hidden)
    trace.op("rms_norm", (embedded,), columns(wide, 0, hidden), "layers.0.embed_norm", eps=eps)
    trace.op("rms_norm", (fused,), columns(wide, hidden, hidden), "layers.0.hidden_norm", eps=eps)
    if config.norm_before_residual:
        trace.op("copy", (columns(wide, hidden, hidden),), x)
    delta = attention(trace, layer, 0, wide)
    for i in range(layer.num_layers):
        if i:
            delta = attention(trace, layer, i, normalise(trace, layer, x, delta, f"layers.{i}.attn_norm"))
        delta = feed_forward(trace, layer, i, normalise(trace, layer, x, delta, f"layers.{i}.mlp_norm"))
    h = normalise(trace, layer, x, delta, "final_norm")
    rows = trace.op("gather_rows", (h,), trace.buffer("rows", hidden, "R"))
    logits = trace.buffer("logits", config.draft_vocab_size, "R")
    trace.op("linear", (rows,), logits, "lm_head", parts=1)
    return trace.program(logits, inputs=(given,), outputs=(h if config.norm_output else x,))


def _fuse(trace: Tracer, config: Eagle3Config, fused: Ref) -> Ref:
    """fc of the features, into `fused`; returns their buffer."""
    size, eps = config.target_hidden_size, config.layer.rms_eps
    features = trace.buffer("features", config.num_taps * size)
    if config.norm_before_fc:
        trace.op("rms_norm", (features,), features, "input_norm", eps=eps)
    for i in range(config.num_taps if config.fc_norm else 0):
        part = columns(features, i * size, size)
        trace.op("rms_norm", (part,), part, f"fc_norm.{i}", eps=eps)
    trace.op("linear", (features,), fused, "fc", parts=1)
    return features
