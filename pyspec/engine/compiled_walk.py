# SPDX-License-Identifier: Apache-2.0
"""The walk of a step's trees and the commit of their KV in one compiled call, on arrays that are made once.

verify_tree and commit_kv as verify_on_host calls them, without torch around them: behind a step of the model nothing of Python or torch is in the
CPU's caches any more, and a few dozen small calls then take as long as the row of logits itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from pyspec import ops
from pyspec.engine.batch import LAWS, StepBatch
from pyspec.engine.verification import Verified


class CompiledWalk:
    """Walks the trees of `batch` by the rows of `logits` [rows, V] f32. Both outlive it, and so does `executor`, a native.StepExecutor."""

    def __init__(self, native: Any, executor: Any, batch: StepBatch, logits: Tensor) -> None:
        self._executor, self._batch, self._logits = executor, batch, logits
        self._rows = native.Rows(logits.data_ptr(), logits.size(1), logits.stride(0), True)
        # A path has no more nodes than its request has rows.
        requests, rows = len(batch.arrays["kv_len"]), batch.max_rows
        self._path_len = np.zeros(requests, dtype=np.int32)
        self._path, self._emitted = np.zeros(rows, dtype=np.int32), np.zeros(rows, dtype=np.int32)
        self._logprobs = np.zeros(rows, dtype=np.float32)
        address = lambda array: array.ctypes.data
        names = {
            "tokens": "row_tokens", "parents": "row_parents", "cu_t": "cu_r", "position": "root_positions",
            **dict(zip(LAWS, LAWS, strict=True)),
        }  # fmt: skip
        self._arrays = native.WalkArrays(
            path=address(self._path), path_len=address(self._path_len), emitted=address(self._emitted),
            logprobs=address(self._logprobs), **{name: address(batch.arrays[array]) for name, array in names.items()},
        )  # fmt: skip

    def run(self, num_logprobs: int | None) -> Verified:
        """As Executor.verify; the results are valid until the next call."""
        batch, top = self._batch, num_logprobs or 0
        requests, longest, edited = batch.B, batch.longest_path, None
        assert requests * longest <= len(self._path), "a path has more nodes than rows"
        if batch.edits.active:
            logits = self._logits[: batch.R]
            edits = batch.edits.arguments(logits.size(1), *batch.trees()[:3])
            edited = None if edits is None else ops.edit_logits(logits, *edits)
        shape = requests, longest
        top_tokens = np.empty((*shape, top), dtype=np.int32)
        top_logprobs = np.empty((*shape, top), dtype=np.float32)
        self._executor.walk(
            self._arrays, self._rows, 0 if edited is None else edited.data_ptr(), batch.R, requests, longest,
            num_logprobs is not None, top, top_tokens.ctypes.data if top else 0, top_logprobs.ctypes.data if top else 0,
        )  # fmt: skip
        part = slice(requests * longest)
        path, emitted = self._path[part].reshape(shape), self._emitted[part].reshape(shape)
        logprobs = self._logprobs[part].reshape(shape)
        return Verified(path, self._path_len[:requests], emitted, logprobs, top_tokens, top_logprobs)
