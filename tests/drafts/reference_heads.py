# SPDX-License-Identifier: Apache-2.0
"""Draft heads in plain torch, written from their papers, without a cache: what the step programs are compared with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from pyspec.drafts.heads.eagle3_config import Eagle3Config
from pyspec.drafts.heads.mtp import Form
from pyspec.models.config import ModelConfig


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotary embedding of x [n, heads, D]: dimensions d and d + D/2 turn together."""
    half = x.size(-1) // 2
    turns = positions[:, None].double() * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    cos, sin = turns.cos()[:, None].to(x.dtype), turns.sin()[:, None].to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def layer(
    w: dict[str, Tensor], i: int, config: ModelConfig, normed: Tensor, residual: Tensor, sees: Tensor, positions: Tensor
) -> Tensor:  # fmt: skip
    """One decoder layer: entry t attends to the entries with sees[t] true; `normed` is what q, k and v are made of."""
    p, n, eps = f"layers.{i}.", len(normed), config.rms_eps
    q, k, v = (normed @ w[p + f"{x}_proj"].T + w.get(p + f"{x}_bias", torch.zeros(())) for x in "qkv")
    q = q.view(n, config.num_heads, config.head_dim)
    k, v = (x.view(n, config.num_kv_heads, config.head_dim) for x in (k, v))
    if config.qk_norm:
        q, k = rms(q, w[p + "q_norm"], eps), rms(k, w[p + "k_norm"], eps)
    q, k = (rotate(x, positions, config.rope_theta) for x in (q, k))
    repeat = config.num_heads // config.num_kv_heads
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    weights = torch.einsum("thd,shd->hts", q, k) / config.head_dim**0.5
    weights = weights.masked_fill(~sees, -torch.inf).softmax(-1)
    x = residual + torch.einsum("hts,shd->thd", weights, v).reshape(n, -1) @ w[p + "o_proj"].T
    h = rms(x, w[p + "mlp_norm"], eps)
    return x + (silu(h @ w[p + "gate_proj"].T) * (h @ w[p + "up_proj"].T)) @ w[p + "down_proj"].T


def eagle3(
    w: dict[str, Tensor], config: Eagle3Config, features: Tensor, tokens: list[int], drafted: list[int], embed: Tensor
) -> Tensor:  # fmt: skip
    """Logits [1 + len(drafted), draft vocabulary] behind the last committed entry and behind each token of a drafted chain.

    features [n, taps * hidden] of n committed positions, tokens: those at the n positions behind them.
    """
    c, eps = config.layer, config.layer.rms_eps
    f = features
    if config.norm_before_fc:
        f = rms(f, w["input_norm"], eps)
    if config.fc_norm:
        parts = f.chunk(config.num_taps, -1)
        f = torch.cat([rms(part, w[f"fc_norm.{i}"], eps) for i, part in enumerate(parts)], -1)
    f = f @ w["fc"].T
    ids, rows = list(tokens), []
    for step in range(1 + len(drafted)):
        n = len(ids)
        hidden = rms(f, w["layers.0.hidden_norm"], eps)
        embedded = rms(embed[ids], w["layers.0.embed_norm"], eps)
        causal = torch.ones(n, n, dtype=torch.bool).tril()
        positions = torch.arange(n)
        x = layer(
            w, 0, c, torch.cat([embedded, hidden], -1), hidden if config.norm_before_residual else f, causal, positions
        )  # fmt: skip
        for i in range(1, c.num_layers):
            x = layer(w, i, c, rms(x, w[f"layers.{i}.attn_norm"], eps), x, causal, positions)
        h = rms(x, w["final_norm"], eps)
        rows.append(h[-1] @ w["lm_head"].T)
        if step < len(drafted):
            f = torch.cat([f, (h if config.norm_output else x)[-1:]])
            ids.append(drafted[step])
    return torch.stack(rows)


def mtp(
    w: dict[str, Tensor], config: ModelConfig, form: Form, features: Tensor, tokens: list[int], drafted: list[int], embed: Tensor
) -> Tensor:  # fmt: skip
    """Logits as of `eagle3`, of an MTP module. features [n, hidden]: what enters the target's final norm; its head is `embed`."""
    eps, f = config.rms_eps, rms(features, w["final_norm"], config.rms_eps)
    ids, rows = list(tokens), []
    for step in range(1 + len(drafted)):
        n = len(ids)
        both = [rms(embed[ids], w["token_norm"], eps), rms(f, w["hidden_norm"], eps)]
        x = torch.cat(both if form.token_first else both[::-1], -1) @ w["input_proj"].T
        causal = torch.ones(n, n, dtype=torch.bool).tril()
        x = layer(w, 0, config, rms(x, w["layers.0.attn_norm"], eps), x, causal, torch.arange(n))
        h = rms(x, w["head_norm"], eps)
        rows.append(h[-1] @ embed.T)
        if step < len(drafted):
            f = torch.cat([f, (h if form.norm_output else x)[-1:]])
            ids.append(drafted[step])
    return torch.stack(rows)


def medusa(w: dict[str, Tensor], blocks: int, head: int, x: Tensor) -> Tensor:
    """Logits of one Medusa head; x is behind the target's final norm."""
    for i in range(blocks):
        x = x + silu(x @ w[f"{head}.{i}.weight"].T + w.get(f"{head}.{i}.bias", torch.zeros(())))
    return x @ w[f"{head}.lm_head"].T
