# SPDX-License-Identifier: Apache-2.0
"""Runs both programs of a head over one cache: committed entries in chunks, then a drafted chain; and what engine tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from contract_tests import native
from torch import Tensor

from pyspec.engine.batch import StepBatch, Work
from pyspec.engine.executor import Executor, Weights, make_executor
from pyspec.engine.kv_pages import KVCache
from pyspec.engine.request import Request
from pyspec.engine.sampling_params import SamplingParams
from pyspec.engine.statistics import StepRecord
from pyspec.engine.text import TextStream
from pyspec.models.config import ModelConfig
from pyspec.models.program import Program
from pyspec.models.rope_table import rope_table

EXECUTORS = [
    "spec",
    pytest.param("compiled", marks=pytest.mark.skipif(native is None, reason="pyspec._C is not compiled")),
]
OPTIONS: dict[str, Any] = {  # of LLM, for tiny targets
    "max_batch": 4, "max_nodes": 8, "max_context": 128, "prefill_chunk": 16, "kv_dtype": "f32", "calibrate": False,
}  # fmt: skip
TOKENS = [1 + (7 * i * i + 3 * i) % 250 for i in range(20)]
DRAFTED = [5, 311, 17]


class Steps:
    """Collects step records."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []

    def record(self, record: StepRecord) -> None:
        self.records.append(record)


class HeadRunner:
    """One request of one head."""

    def __init__(
        self, layer: ModelConfig, program: Program, branch: Program, weights: dict[str, Tensor], executor: str
    ) -> None:
        self.batch = StepBatch(max_tokens=8, max_rows=4, max_batch=1, table_width=4, page_size=16)
        cache = KVCache(layer.num_layers, 4, 16, layer.num_kv_heads, layer.head_dim, torch.float32)
        named = {**weights, "rope_full": rope_table(layer, "full", 64)}
        source = Weights(lambda name: named[name])
        make = lambda p: make_executor(executor, p, source, cache, self.batch, lambda: None)
        self.extend, self.grow = (make(program), program.inputs[0]), (make(branch), branch.inputs[0])
        (self.output,) = program.outputs
        self.request = Request([0], SamplingParams(), TextStream(None, ()), None, 1, pages=[2, 0, 3, 1])

    def step(self, how: tuple[Executor, str], tokens: list[int], given: Tensor) -> tuple[Tensor, Tensor]:
        """(logits, output) of the last entry."""
        executor, name = how
        depths = np.arange(len(tokens), dtype=np.int32)
        self.batch.fill([Work(self.request, np.array(tokens, dtype=np.int32), depths - 1, depths, 1)])
        executor.write(name, given)
        executor.run()
        self.request.kv_len += len(tokens)
        return executor.logits().clone(), executor.read(self.output)[-1:].clone()

    def logits(self, features: Tensor, tokens: list[int], drafted: list[int]) -> Tensor:
        """[1 + len(drafted), columns]: behind the committed entries, and behind each drafted one."""
        for start in range(0, len(tokens), 7):
            part = slice(start, start + 7)
            logits, output = self.step(self.extend, tokens[part], features[part])
        rows = [logits]
        for token in drafted:
            logits, output = self.step(self.grow, [token], output)
            rows.append(logits)
        return torch.cat(rows)
