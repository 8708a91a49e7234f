# SPDX-License-Identifier: Apache-2.0
"""The unrolled head against drafting done one entry at a time, with a plain attention over everything that a draft has seen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import tiny_checkpoint
from torch import Tensor

from pyspec.drafts.heads.eagle3_config import Eagle3Config, head_shapes
from pyspec.models.checkpoint import open_checkpoint
from pyspec.models.config import ModelConfig
from pyspec.models.rope_table import rope_table
from pyspec.spec import rms_norm, rope
from pyspec.training.head import Head, Texts, head_config, initial_weights


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return open_checkpoint(tiny_checkpoint("llama", tmp_path_factory.mktemp("model") / "llama")).config


def random_weights(config: Eagle3Config) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: (0.2 if len(shape) == 2 else 0.5) * torch.randn(shape, generator=generator) + (len(shape) == 1)
        for name, shape in head_shapes(config).items()
    }


class OneByOne:
    """The head's formulas on one entry at a time; keys and values of earlier entries are lists."""

    def __init__(self, config: Eagle3Config, weights: dict[str, Tensor]) -> None:
        self.layer, self.w, self.config = config.layer, weights, config
        self.table = rope_table(config.layer, "full", 64)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def norm(self, x: Tensor, name: str) -> Tensor:
        return rms_norm.reference(x, self.w[name], eps=self.layer.rms_eps)

    def rotated(self, x: Tensor, position: int) -> Tensor:
        heads = x.view(1, -1, self.layer.head_dim)
        return rope.reference(heads, torch.tensor([position], dtype=torch.int32), self.table)[0]

    def entry(self, embedding: Tensor, state: Tensor, position: int, scratch: bool) -> tuple[Tensor, Tensor]:
        """(output that the next step takes, logits); a scratch entry leaves nothing behind."""
        known = len(self.keys)
        normed = self.norm(state, "layers.0.hidden_norm")
        pair = torch.cat([self.norm(embedding, "layers.0.embed_norm"), normed], dim=1)
        q, k, v = (pair @ self.w[f"layers.0.{name}_proj"].T for name in "qkv")
        self.keys.append(self.rotated(k, position))
        self.values.append(v.view(-1, self.layer.head_dim))
        repeat = self.layer.num_heads // self.layer.num_kv_heads
        keys, values = (torch.stack(x, 1).repeat_interleave(repeat, 0) for x in (self.keys, self.values))
        p = torch.softmax((self.rotated(q, position)[:, None] * keys).sum(2) * self.layer.attn_scale, dim=1)
        attended = (p[:, :, None] * values).sum(1).view(1, -1)
        h = normed + attended @ self.w["layers.0.o_proj"].T
        x = self.norm(h, "layers.0.mlp_norm")
        gate, up = (x @ self.w[f"layers.0.{name}_proj"].T for name in ("gate", "up"))
        h = h + (torch.nn.functional.silu(gate) * up) @ self.w["layers.0.down_proj"].T
        if scratch:
            del self.keys[known:], self.values[known:]
        return h, self.norm(h, "final_norm") @ self.w["lm_head"].T

    def fused(self, features: Tensor) -> Tensor:
        taps = features.split(self.config.target_hidden_size, dim=1)
        normed = [self.norm(tap, f"fc_norm.{i}") for i, tap in enumerate(taps)]
        return torch.cat(normed, dim=1) @ self.w["fc"].T

    def chain(self, features: Tensor, embeddings: Tensor, root: int, steps: int) -> list[Tensor]:
        """Logits of the draft steps of the chain whose first entry is row `root`."""
        self.keys, self.values, logits = [], [], []
        fused = self.fused(features)
        for j in range(root):
            self.entry(embeddings[j : j + 1], fused[j : j + 1], j, scratch=False)
        state = fused[root : root + 1]
        for j in range(root, min(root + steps, len(embeddings))):
            state, row = self.entry(embeddings[j : j + 1], state, j, scratch=False)
            logits.append(row[0])
        return logits


# bf16 rounds every product of random weights; a wrong mask would show in f32.
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 0.15)])
def test_unrolled_steps_are_those_of_drafting(target: ModelConfig, dtype: torch.dtype, limit: float) -> None:
    config = head_config(target, (0, 1, 2), 96, 40)
    weights = random_weights(config)
    generator = torch.Generator().manual_seed(2)
    spans = ((0, 3, 9), (9, 9, 11), (11, 15, 16))  # a prompt of 3 rows, none, and one answer row behind 4
    features = torch.randn(16, 3 * target.hidden_size, generator=generator)
    embeddings = torch.randn(16, target.hidden_size, generator=generator)
    texts = Texts(features, embeddings, spans)
    got = list(Head(config, weights, dtype, 64).unroll(texts, 4))
    assert [len(logits) for logits in got] == [6 + 2 + 1, 5 + 1, 4, 3]
    plain = OneByOne(config, weights)
    at = [0] * 4
    for start, first, end in spans:
        for root in range(first - start, end - start):
            wanted = plain.chain(features[start:end], embeddings[start:end], root, 4)
            for k, row in enumerate(wanted):
                error = (got[k][at[k]] - row).abs().max() / row.abs().max()
                assert error < limit, (start, root, k)
                at[k] += 1
    assert at == [9, 6, 4, 3]


def test_a_chain_does_not_see_what_comes_later(target: ModelConfig) -> None:
    config = head_config(target, (0, 1, 2), 96, 40)
    weights = random_weights(config)
    features, embeddings = torch.randn(8, 3 * target.hidden_size), torch.randn(8, target.hidden_size)
    texts = Texts(features, embeddings, ((0, 2, 8),))
    before = list(Head(config, weights, torch.float32, 64).unroll(texts, 3))
    # Chain 1 begins at row 3: the target's features of later rows are not there when it is drafted.
    changed = replace(texts, features=torch.cat([features[:4], torch.randn(4, features.size(1))]))
    after = list(Head(config, weights, torch.float32, 64).unroll(changed, 3))
    for k in range(3):
        torch.testing.assert_close(after[k][:2], before[k][:2])
        assert not torch.allclose(after[k][2:], before[k][2:])


def test_initial_head_begins_with_columns_of_one_size(target: ModelConfig) -> None:
    config = head_config(target, (0, 1, 2), 96, 40)
    features = torch.randn(500, 3 * target.hidden_size) * torch.logspace(-1, 2, 3 * target.hidden_size)
    weights = initial_weights(config, features, torch.randn(40, 64), torch.ones(64), seed=0)
    tap = features[:, 64:128]
    normed = tap / tap.square().mean(1, keepdim=True).sqrt() * weights["fc_norm.1"]
    torch.testing.assert_close(normed.square().mean(0), torch.ones(64), rtol=1e-3, atol=0)
    again = initial_weights(config, features, torch.randn(40, 64), torch.ones(64), seed=0)
    assert torch.equal(weights["fc"], again["fc"])


@pytest.mark.parametrize(
    ("taps", "size", "vocabulary", "message"),
    [
        ((0, 1, 3), 96, 40, "taps must be distinct layers"),
        ((0, 1, 2), 96, 321, "draft_vocab_size must be"),
        ((0, 1, 2), 0, 40, "intermediate_size must be"),
        ((1, 1, 2), 96, 40, "taps must be ascending and distinct"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    target: ModelConfig, taps: tuple[int, ...], size: int, vocabulary: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        head_config(target, taps, size, vocabulary)
