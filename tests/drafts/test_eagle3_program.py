# SPDX-License-Identifier: Apache-2.0
"""The EAGLE-3 step programs against the plain torch head, on every executor and in every variant of the head."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from contract_tests import native
from reference_heads import eagle3
from tiny_heads import eagle3_config, eagle3_weights
from torch import Tensor

from pyspec.drafts.heads.eagle3_config import Eagle3Config
from pyspec.drafts.heads.eagle3_program import eagle3_program
from pyspec.engine.batch import StepBatch, Work
from pyspec.engine.executor import Executor, Weights, make_executor
from pyspec.engine.kv_pages import KVCache
from pyspec.engine.request import Request
from pyspec.engine.sampling_params import SamplingParams
from pyspec.engine.text import TextStream
from pyspec.models.rope_table import rope_table

EXECUTORS = [
    "spec",
    pytest.param("compiled", marks=pytest.mark.skipif(native is None, reason="pyspec._C is not compiled")),
]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "normed residual": {"norm_before_residual": True},
    "norm of features": {"norm_before_fc": True},
    "norm of taps": {"fc_norm": True, "norm_before_residual": True},
    "normed output": {"norm_output": True},
    "two qwen3 layers": {"model_type": "qwen3", "num_hidden_layers": 2, "norm_before_residual": True},
    "one tap, own embedding": {"taps": (2,), "own_embedding": True},
}
TOKENS = [1 + (7 * i * i + 3 * i) % 250 for i in range(20)]
DRAFTED = [5, 311, 17]


class Runner:
    """Both programs of one head over one cache, run as the draft runs them: committed entries in chunks, then a chain."""

    def __init__(
        self, config: Eagle3Config, weights: dict[str, Tensor], embed: Tensor, executor: str
    ) -> None:
        layer = config.layer
        self.batch = StepBatch(max_tokens=8, max_rows=4, max_batch=1, table_width=4, page_size=16)
        shape = (layer.num_layers, 4, 16, layer.num_kv_heads, layer.head_dim)
        cache = KVCache(*shape, torch.float32)
        tables = {"embed": embed, "rope_full": rope_table(layer, "full", 64)}
        source = Weights(lambda name: {**tables, **weights}[name])
        make = lambda first: make_executor(
            executor, eagle3_program(config, first), source, cache, self.batch, lambda: None
        )
        self.extend, self.grow = make(True), make(False)
        self.output = self.extend._program.outputs[0]  # type: ignore[attr-defined]
        self.request = Request([0], SamplingParams(), TextStream(None, ()), None, 1, pages=[2, 0, 3, 1])

    def step(self, executor: Executor, tokens: list[int], given: Tensor) -> tuple[Tensor, Tensor]:
        """(logits, output) of the last entry."""
        depths = np.arange(len(tokens), dtype=np.int32)
        work = Work(self.request, np.array(tokens, dtype=np.int32), depths - 1, depths, 1)
        self.batch.fill([work])
        executor.write(executor._program.inputs[0], given)  # type: ignore[attr-defined]
        executor.run()
        self.request.kv_len += len(tokens)
        return executor.logits().clone(), executor.read(self.output)[-1:].clone()

    def logits(self, features: Tensor, tokens: list[int], drafted: list[int]) -> Tensor:
        for start in range(0, len(tokens), 7):
            part = slice(start, start + 7)
            logits, output = self.step(self.extend, tokens[part], features[part])
        rows = [logits]
        for token in drafted:
            logits, output = self.step(self.grow, [token], output)
            rows.append(logits)
        return torch.cat(rows)


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
    got = Runner(config, weights, table, executor).logits(features, TOKENS, DRAFTED).double()
    assert got.shape == (1 + len(DRAFTED), config.draft_vocab_size)
    assert (got - exact).abs().max() <= 1e-4 * exact.abs().max()
    assert (got - exact).abs().max() <= 2 * (low - exact).abs().max()


@pytest.mark.parametrize("flag", ["norm_before_residual", "norm_output", "norm_before_fc", "fc_norm"])
def test_flags_make_other_heads(flag: str) -> None:
    """A head read with the wrong flag gives other logits: each flag is what decides."""
    with_flag, without = eagle3_config(**{flag: True}), eagle3_config()
    weights, embed, features = inputs(with_flag)
    a, b = (
        Runner(config, weights, embed, "spec").logits(features, TOKENS, DRAFTED)
        for config in (with_flag, without)
    )
    rows = slice(1, None) if flag == "norm_output" else slice(None)  # the first logits are before any output
    assert (a - b)[rows].abs().amax(1).min() > 0.1
