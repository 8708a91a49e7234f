# SPDX-License-Identifier: Apache-2.0
"""The compiled CPU executor: packs the weights once, lowers the program to launches, runs a step in one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyspec import backends
from pyspec.engine.batch import StepBatch
from pyspec.engine.kv_pages import KVCache
from pyspec.engine.weights import Weights
from pyspec.models.program import Program, Ref, Step

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/include/pyspec/dtype.h


class CompiledExecutor:
    """One compiled call per step. This object keeps alive every tensor whose address the launches hold."""

    def __init__(self, program: Program, weights: Weights, cache: KVCache, batch: StepBatch) -> None:
        self._native = backends.native
        self.name = f"cpu/{self._native.cpu_isa()}"
        self._program, self._batch, self._cache = program, batch, cache
        rows = {"T": batch.max_tokens, "R": batch.max_rows}
        self._buffers = {b.name: torch.zeros(rows[b.rows], b.columns) for b in program.buffers}
        self._weights: dict[str, Any] = {}
