# SPDX-License-Identifier: Apache-2.0
"""The arrays of one step, allocated once and filled anew for each step; executors read them in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyspec.engine.request import Request
from pyspec.trees.token_tree import TokenTree


@dataclass(frozen=True)
class Work:
    """What one request does in one step: its new nodes, and how many of the last of them need logits."""

    request: Request
    tokens: NDArray[np.int32]
    parents: NDArray[np.int32]
    depths: NDArray[np.int32]
    logit_rows: int

    @staticmethod
    def prefill(request: Request, size: int) -> Work:
        """The next `size` prompt tokens as a chain; the prompt's last token gives the first logits."""
        tokens = np.array(request.prompt[request.kv_len : request.kv_len + size], dtype=np.int32)
        depths = np.arange(len(tokens), dtype=np.int32)
        return Work(request, tokens, depths - 1, depths, int(request.kv_len + size == len(request.prompt)))

    @staticmethod
    def decode(request: Request, tree: TokenTree) -> Work:
        return Work(request, tree.tokens, tree.parents, tree.depths, len(tree))


class StepBatch:
    """Inputs of a step for up to `max_tokens` nodes of `max_batch` requests (letters: T, R rows of logits, B, W)."""

    def __init__(
        self, max_tokens: int, max_rows: int, max_batch: int, table_width: int, page_size: int
    ) -> None:
        self.max_tokens, self.max_rows, self.page_size = max_tokens, max_rows, page_size
        self.T = self.R = self.B = 0
        self.requests: list[Request] = []
        self.tokens, self._tokens = _array(max_tokens)
        self.positions, self._positions = _array(max_tokens)
        self.parents, self._parents = _array(max_tokens)
        self.slots, self._slots = _array(max_tokens, np.int64)
        self.cu_t, self._cu_t = _array(max_batch + 1)
        self.kv_len, self._kv_len = _array(max_batch)
        self.page_table, table = _array(max_batch * table_width)
        self.page_table, self._page_table = (
            self.page_table.view(max_batch, table_width),
            table.reshape(max_batch, -1),
        )
        self.logit_rows, self._logit_rows = _array(max_rows)

    def fill(self, works: Sequence[Work]) -> None:
        """Lay out one step. The page tables of the requests must already cover their new nodes."""
        t = rows = 0
        for b, work in enumerate(works):
            request, n = work.request, len(work.tokens)
            end, length = t + n, request.kv_len
            self._tokens[t:end] = work.tokens
            self._parents[t:end] = work.parents
            self._positions[t:end] = work.depths + length
            table = self._page_table[b]
            table[: len(request.pages)] = request.pages
            logical = np.arange(length, length + n)
            self._slots[t:end] = (
                table[logical // self.page_size] * np.int64(self.page_size) + logical % self.page_size
            )
            self._kv_len[b] = length
            self._cu_t[b + 1] = end
            self._logit_rows[rows : rows + work.logit_rows] = np.arange(end - work.logit_rows, end)
            rows += work.logit_rows
            t = end
        self.T, self.R, self.B = t, rows, len(works)
        self.requests = [work.request for work in works]


def _array(size: int, dtype: type = np.int32) -> tuple[Tensor, NDArray[np.integer]]:
    """A zeroed tensor and its numpy view (assignment through numpy costs a tenth)."""
    array: NDArray[np.integer] = np.zeros(size, dtype=dtype)
    return torch.from_numpy(array), array
