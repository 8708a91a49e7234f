# SPDX-License-Identifier: Apache-2.0
"""Hidden states of given tokens: what a draft head learns from, computed by programs that share the engine's weights and cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyspec.engine.batch import StepBatch, Work
from pyspec.engine.executor import Executor
from pyspec.engine.kv_pages import PagePool
from pyspec.engine.request import Request
from pyspec.engine.sampling_params import SamplingParams
from pyspec.engine.text import TextStream
from pyspec.models.config import ModelConfig


class HiddenStates:
    """Runs tokens through executors with taps, each made when its layers are first asked for."""

    def __init__(
        self,
        config: ModelConfig,
        make: Callable[[tuple[int, ...]], Executor],
        batch: StepBatch,
        pool: PagePool,
        max_context: int,
    ) -> None:
        """make(layers): an executor of `batch` with these taps."""
        self._config, self._make, self._batch, self._pool = config, make, batch, pool
        self._max_context = max_context
        self._executors: dict[tuple[int, ...], Executor] = {}

    def compute(self, tokens: Sequence[int], layers: Sequence[int]) -> Tensor:
        """See LLM.hidden_states."""
        ids, taps = self._token_ids(tokens), self._layers(layers)
        if taps not in self._executors:
            self._executors[taps] = self._make(taps)
        executor, batch = self._executors[taps], self._batch
        pages = self._pool.take(-(-len(ids) // batch.page_size))
        if pages is None:
            raise ValueError(
                f"LLM.hidden_states: tokens must fit {self._pool.free_pages} free pages, got {len(ids)}"
            )
        request = Request(ids, SamplingParams(), TextStream(None, ()), None, 1, pages=pages)
        out = torch.empty(len(ids), len(taps) * self._config.hidden_size)
        try:
            while request.in_prefill:
                start = request.kv_len
                work = Work.prefill(request, min(batch.max_tokens, len(ids) - start))
                batch.fill([work._replace(logit_rows=0)])  # no row of logits: the LM head has nothing to do
                executor.run()
                request.kv_len += len(work.tokens)
                out[start : request.kv_len] = executor.taps()
        finally:
            self._pool.give_back(pages)
        return out

    def nbytes(self) -> int:
        """Buffers of the executors made so far, in bytes; their weights are the engine's."""
        return sum(executor.nbytes()["buffers"] for executor in self._executors.values())

    def _token_ids(self, tokens: Sequence[int]) -> list[int]:
        ids, vocab = [int(token) for token in tokens], self._config.vocab_size
        if not 1 <= len(ids) <= self._max_context:
            raise ValueError(f"LLM.hidden_states: tokens must be 1 to {self._max_context}, got {len(ids)}")
        if bad := [token for token in ids if not 0 <= token < vocab]:
            raise ValueError(f"LLM.hidden_states: tokens must be in [0, {vocab}), got {bad[0]}")
        return ids

    def _layers(self, layers: Sequence[int]) -> tuple[int, ...]:
        taps, most = tuple(int(i) for i in layers), self._config.num_layers
        if not taps or len(set(taps)) != len(taps) or not all(0 <= i <= most for i in taps):
            raise ValueError(
                f"LLM.hidden_states: layers must be distinct and in [0, {most}], got {list(taps)}"
            )
        return taps
