# SPDX-License-Identifier: Apache-2.0
"""The EAGLE-3 step programs against the plain torch head, on every executor and in every variant of the head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from head_runner import DRAFTED, EXECUTORS, TOKENS, HeadRunner
from reference_heads import eagle3
from tiny_heads import eagle3_config, eagle3_weights
from torch import Tensor

from pyspec.drafts.heads.eagle3_config import Eagle3Config
from pyspec.drafts.heads.eagle3_program import eagle3_program

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "normed residual": {"norm_before_residual": True},
    "norm of features": {"norm_before_fc": True},
    "norm of taps": {"fc_norm": True, "norm_before_residual": True},
    "normed output": {"norm_output": True},
    "two qwen3 layers": {"model_type": "qwen3", "num_hidden_layers": 2, "norm_before_residual": True},
    "one tap, own embedding": {"taps": (2,), "own_embedding": True},
}


def run(
    config: Eagle3Config, weights: dict[str, Tensor], embed: Tensor, executor: str, features: Tensor
) -> Tensor:
    programs = eagle3_program(config, True), eagle3_program(config, False)
    return HeadRunner(config.layer, *programs, {"embed": embed, **weights}, executor).logits(
        features, TOKENS, DRAFTED
    )


def inputs(config: Eagle3Config) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """(weights, embedding, features) of bf16 values: what they are in every precision."""
    generator = torch.Generator().manual_seed(5)
    weights, _ = eagle3_weights(config)
    embed = torch.randn(320, 64, generator=generator)
    features = torch.randn(len(TOKENS), config.num_taps * config.target_hidden_size, generator=generator)
    rounded = {name: w.bfloat16().float() for name, w in weights.items()}
    return rounded, embed.bfloat16().float(), features.bfloat16().float()


def cast(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: w.to(dtype) for name, w in weights.items()}


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_the_plain_head(variant: str, executor: str) -> None:
    config = eagle3_config(**VARIANTS[variant])
    weights, embed, features = inputs(config)
    table = weights["embed"] if config.own_embedding else embed
    exact, low = (
        eagle3(cast(weights, dtype), config, features.to(dtype), TOKENS, DRAFTED, table.to(dtype)).double()
        for dtype in (torch.float64, torch.bfloat16)
    )
    got = run(config, weights, table, executor, features).double()
    assert got.shape == (1 + len(DRAFTED), config.draft_vocab_size)
    assert (got - exact).abs().max() <= 1e-4 * exact.abs().max()
    assert (got - exact).abs().max() <= 2 * (low - exact).abs().max()


@pytest.mark.parametrize("flag", ["norm_before_residual", "norm_output", "norm_before_fc", "fc_norm"])
def test_flags_make_other_heads(flag: str) -> None:
    """A head read with the wrong flag gives other logits: each flag is what decides."""
    with_flag, without = eagle3_config(**{flag: True}), eagle3_config()
    weights, embed, features = inputs(with_flag)
    a, b = (run(config, weights, embed, "spec", features) for config in (with_flag, without))
    rows = slice(1, None) if flag == "norm_output" else slice(None)  # the first logits are before any output
    assert (a - b)[rows].abs().amax(1).min() > 0.1
