# SPDX-License-Identifier: Apache-2.0
"""The EAGLE-3 head in torch, unrolled as it drafts (training-time test, arXiv 2503.01840, section 3.2).

Row j of a text pairs the target's features at position j with token j + 1, and predicts token j + 2 (eagle3_config.py has the
formulas and the weights' names). Drafting from row j runs a chain: step 0 sees the target's features; step k, at row j + k, gets the
head's own output of step k - 1 in their place. It attends to the step-0 keys of rows up to j and to its own chain's keys of steps 1..k,
which is all that a draft has then. The tokens are those of the text: later steps matter only where the earlier ones were right.

One chain starts at every row of an answer, so step k is the same computation on rows that are k further on. Rows of the prompt are
never predicted: they give step-0 keys and values, and cost nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear, silu, softmax

from pyspec.drafts.heads.eagle3_config import Eagle3Config, head_shapes
from pyspec.models.config import ModelConfig
from pyspec.models.rope_table import rope_table

Weights = Mapping[str, Tensor]


def head_config(
    target: ModelConfig, taps: tuple[int, ...], intermediate_size: int, draft_vocab_size: int
) -> Eagle3Config:
    """One Llama layer with the target's hidden size, heads and RoPE. ValueError names a size that does not fit."""
    layer = replace(
        target, architecture="llama", num_layers=1, layer_types=("full",), intermediate_size=intermediate_size,
        sliding_window=0, rope_local_theta=None, attn_scale=target.head_dim**-0.5, attn_softcap=0.0,
        logit_softcap=0.0, activation="silu", qkv_bias=False, qk_norm=False, post_norms=False, embed_scale=1.0,
        tie_embeddings=False,
    )  # fmt: skip
    config = Eagle3Config(
        layer, draft_vocab_size, target.hidden_size, taps, norm_before_residual=True, fc_norm=True
    )
    config.taps_of(target)
    return config


def initial_weights(
    config: Eagle3Config, features: Tensor, lm_head: Tensor, final_norm: Tensor, seed: int
) -> dict[str, Tensor]:
    """f32 weights by canonical name: small normal matrices, norms of one, but for what is known.

    features [n, taps * hidden] f32 are examples. A residual stream has a few columns hundreds of times larger than the others, which would
    drown these in fc and make training diverge: the norms before fc start as the inverse of each column's size. lm_head [draft_vocab_size, hidden]
    starts as the target's own, final_norm as a fifth of it, which makes the first laws nearly flat and not wrong with certainty.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in head_shapes(config).items():
        small = 0.02 * torch.randn(shape, generator=generator) if len(shape) == 2 else torch.ones(shape)
        weights[name] = small
    for i, tap in enumerate(features.split(config.target_hidden_size, dim=1)):
        normed = tap * torch.rsqrt(tap.square().mean(1, keepdim=True) + config.layer.rms_eps)
        weights[f"fc_norm.{i}"] = 1 / normed.square().mean(0).sqrt().clamp(min=1e-3)
    weights["final_norm"], weights["lm_head"] = 0.2 * final_norm.float(), lm_head.float().clone()
    return {name: weight.requires_grad_() for name, weight in weights.items()}


@dataclass(frozen=True)
class Texts:
    """Rows of several texts, one behind the other.

    features [R, taps * hidden] f32, embeddings [R, hidden] f32 of the next tokens; spans: (first row, first row of the answer,
    end) of each text.
    """

    features: Tensor
    embeddings: Tensor
    spans: tuple[tuple[int, int, int], ...]

    def chains(self, step: int) -> list[int]:
        """Chains of each text that reach this step."""
        return [max(0, end - first - step) for _, first, end in self.spans]

    def rows(self, step: int) -> Tensor:
        """The rows that step computes, int64, chains of one text side by side."""
        counts = self.chains(step)
        spans = zip(self.spans, counts, strict=True)
        return torch.cat([torch.arange(first + step, first + step + n) for (_, first, _), n in spans])


class Head:
    """The head's forward pass with `weights`; matrices are multiplied in `dtype`, everything else is f32."""

    def __init__(self, config: Eagle3Config, weights: Weights, dtype: torch.dtype, max_length: int) -> None:
        self._config, self._dtype = config, dtype
        self._w = {name: w.to(dtype) if w.dim() == 2 else w for name, w in weights.items()}
        table = rope_table(config.layer, "full", max_length)
        half = config.layer.head_dim // 2
        self._cos, self._sin = table[:, :half], table[:, half:]

    def unroll(self, texts: Texts, steps: int) -> Iterator[Tensor]:
        """Logits [chains that reach step k, draft_vocab_size] f32 for k = 0 .. steps - 1, in the order of texts.rows(k)."""
        taps = texts.features.split(self._config.target_hidden_size, dim=1)
        normed = [self._norm(tap, f"fc_norm.{i}") for i, tap in enumerate(taps)]
        hidden = self._linear(torch.cat(normed, dim=1), "fc")
        embedded = self._norm(texts.embeddings, "layers.0.embed_norm")
        positions = torch.cat([torch.arange(end - start) for start, _, end in texts.spans])
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for step in range(steps):
            rows = texts.rows(step)
            if not len(rows):
                return
            inside = rows if step == 0 else torch.arange(len(rows))
            if step:  # row j's input is the output of the step before at row j - 1: every chain that goes on
                parts = hidden.split(texts.chains(step - 1))
                hidden = torch.cat([part[:n] for part, n in zip(parts, texts.chains(step), strict=True)])
            state = self._norm(hidden, "layers.0.hidden_norm")
            pair = torch.cat([embedded if step == 0 else embedded[rows], state], dim=1)
            at = positions if step == 0 else positions[rows]
            keys.append(self._rope(self._linear(pair, "layers.0.k_proj"), at))
            values.append(self._heads(self._linear(pair, "layers.0.v_proj")))
            query = self._rope(self._linear(pair[inside], "layers.0.q_proj"), positions[rows])
            residual = state[inside]  # norm_before_residual
            residual = residual + self._linear(
                self._attend(query, keys, values, texts, step), "layers.0.o_proj"
            )
            hidden = residual + self._mlp(self._norm(residual, "layers.0.mlp_norm"))
            yield self._linear(self._norm(hidden, "final_norm"), "lm_head")

    def _attend(
        self, query: Tensor, keys: list[Tensor], values: list[Tensor], texts: Texts, step: int
    ) -> Tensor:
        """[rows of the step, heads * head_dim]: attention of each text's chains, one text at a time."""
        groups, scale = self._config.layer.num_kv_heads, self._config.layer.attn_scale
        outputs, at = [], [0] * (step + 1)
        for (start, first, _), *reach in zip(
            texts.spans, *(texts.chains(k) for k in range(step + 1)), strict=True
        ):
            n, known = reach[-1], first - start
            q = query[at[step] : at[step] + n].unflatten(1, (groups, -1)).permute(1, 2, 0, 3)  # [G, R, n, D]
            seen = slice(start, first + n)
            k0, v0 = (x[seen].transpose(0, 1)[:, None] for x in (keys[0], values[0]))  # [G, 1, known + n, D]
            visible = torch.arange(known + n) <= known + torch.arange(n)[:, None]
            scores = [(q @ k0.transpose(2, 3)).float().masked_fill(~visible, float("-inf"))]
            own = [slice(at[k], at[k] + n) for k in range(1, step + 1)]
            for part, k in zip(own, keys[1:], strict=True):
                scores.append((q * k[part].transpose(0, 1)[:, None]).float().sum(-1, keepdim=True))
            p = softmax(torch.cat(scores, dim=-1) * scale, dim=-1).to(self._dtype)
            out = p[..., : known + n] @ v0
            for i, (part, v) in enumerate(zip(own, values[1:], strict=True)):
                out = out + p[..., known + n + i, None] * v[part].transpose(0, 1)[:, None]
            outputs.append(out.permute(2, 0, 1, 3).flatten(1))
            at = [x + y for x, y in zip(at, reach, strict=True)]
        return torch.cat(outputs)

    def _mlp(self, x: Tensor) -> Tensor:
        gate = silu(self._linear(x, "layers.0.gate_proj"))
        return self._linear(gate * self._linear(x, "layers.0.up_proj"), "layers.0.down_proj")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return linear(x.to(self._dtype), self._w[name]).float()

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self._config.layer.rms_eps) * self._w[name]

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self._config.layer.head_dim)).to(self._dtype)

    def _rope(self, x: Tensor, positions: Tensor) -> Tensor:
        cos, sin = self._cos[positions][:, None], self._sin[positions][:, None]
        a, b = x.unflatten(1, (-1, self._config.layer.head_dim)).chunk(2, dim=2)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=2).to(self._dtype)
