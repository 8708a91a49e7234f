# SPDX-License-Identifier: Apache-2.0
"""The arrays of one step, allocated once and filled anew for each step; executors read them in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyspec.drafts.base import DrawnRows
from pyspec.engine.drawn import BatchDrawn, DrawnTree
from pyspec.engine.edits import BatchEdits
from pyspec.engine.request import Request
from pyspec.trees.token_tree import TokenTree

# Sampling parameters of a request, in the order of verify_tree
LAWS = {
    "temperature": np.float32, "top_k": np.int32, "top_p": np.float32, "min_p": np.float32, "typical_p": np.float32,
    "seed": np.int64, "stream": np.int32,
}  # fmt: skip


class Work(NamedTuple):
    """What one request does in one step: its new nodes, and how many of the last of them need logits."""

    request: Request
    tokens: NDArray[np.int32]
    parents: NDArray[np.int32]
    depths: NDArray[np.int32]
    logit_rows: int
    drawn: DrawnTree | None = None

    @staticmethod
    def prefill(request: Request, size: int) -> Work:
        """The next `size` prompt tokens as a chain; the prompt's last token gives the first logits."""
        tokens = np.array(request.prompt[request.kv_len : request.kv_len + size], dtype=np.int32)
        depths = np.arange(len(tokens), dtype=np.int32)
        return Work(request, tokens, depths - 1, depths, int(request.kv_len + size == len(request.prompt)))

    @staticmethod
    def decode(request: Request, tree: TokenTree, rows: DrawnRows | None = None) -> Work:
        """rows: what the tree's children were drawn from, if they were."""
        drawn = None if rows is None else DrawnTree(tree, rows)
        return Work(request, tree.tokens, tree.parents, tree.depths, len(tree), drawn)

    @property
    def row_parents(self) -> NDArray[np.int32]:
        """Parents of the nodes with logits: all of a tree, or the end of a prompt, which is a chain by itself."""
        n = self.logit_rows
        return self.parents if n == len(self.tokens) else np.arange(-1, n - 1, dtype=np.int32)


class StepBatch:
    """Inputs of a step for up to `max_tokens` nodes of `max_batch` requests (letters: T, R rows of logits, B, W).

    The nodes with logits are trees of their own, those that verify_tree walks: row_tokens and row_parents [R], cu_r [B+1], and
    per request the position of the root and the sampling parameters. A request without logits in this step has no row.
    """

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
        self.row_tokens, self._row_tokens = _array(max_rows)
        self.row_parents, self._row_parents = _array(max_rows)
        self.cu_r, self._cu_r = _array(max_batch + 1)
        self.root_positions, self._root_positions = _array(max_batch)
        # Which pages the rows of the table hold: lists that only ever grow.
        self._listed: list[tuple[list[int], int]] = [([], -1)] * max_batch
        self.longest_path = 0  # nodes of the deepest path among the rows
        self.edits = BatchEdits()
        self.drawn = BatchDrawn()
        laws = [_array(max_batch, dtype) for dtype in LAWS.values()]
        self.laws, self._laws = [law for law, _ in laws], [array for _, array in laws]
        self.arrays: dict[str, NDArray] = {  # all of them by name
            "tokens": self._tokens, "positions": self._positions, "parents": self._parents, "slots": self._slots,
            "cu_t": self._cu_t, "kv_len": self._kv_len, "page_table": self._page_table, "logit_rows": self._logit_rows,
            "row_tokens": self._row_tokens, "row_parents": self._row_parents, "cu_r": self._cu_r,
            "root_positions": self._root_positions, **dict(zip(LAWS, self._laws, strict=True)),
        }  # fmt: skip

    def fill(self, works: Sequence[Work]) -> None:
        """Lay out one step. The page tables of the requests must already cover their new nodes."""
        t = rows = longest = 0
        for b, work in enumerate(works):
            request, n, logit_rows = work.request, len(work.tokens), work.logit_rows
            end, length, size = t + n, request.kv_len, self.page_size
            pages, count = self._listed[b]
            if pages is not request.pages or count != len(pages):
                self._page_table[b, : len(request.pages)] = request.pages
                self._listed[b] = request.pages, len(request.pages)
            self._kv_len[b] = length
            self._cu_t[b + 1] = end
            row_end = rows + logit_rows
            self._cu_r[b + 1] = row_end
            self._root_positions[b] = length + n - logit_rows
            if n == 1:  # plain decoding: an element costs a fifth of a slice
                token = work.tokens[0]
                self._tokens[t], self._parents[t], self._positions[t] = token, -1, length
                self._slots[t] = request.pages[length // size] * size + length % size
                if logit_rows:
                    self._logit_rows[rows], self._row_tokens[rows], self._row_parents[rows] = t, token, -1
                    longest = max(longest, 1)
            else:
                self._tokens[t:end] = work.tokens
                self._parents[t:end] = work.parents
                self._positions[t:end] = work.depths + length
                logical = np.arange(length, length + n)
                self._slots[t:end] = self._page_table[b][logical // size] * np.int64(size) + logical % size
                self._logit_rows[rows:row_end] = np.arange(end - logit_rows, end)
                self._row_tokens[rows:row_end] = work.tokens[n - logit_rows :]
                self._row_parents[rows:row_end] = work.row_parents
                if logit_rows:
                    longest = max(longest, 1 + int(work.depths.max() - work.depths[-logit_rows]))
            rows, t = row_end, end
        self.longest_path = longest
        self.T, self.R, self.B = t, rows, len(works)
        self.edits.fill([work.request.edits if work.logit_rows else None for work in works])
        self.drawn.fill([(work.logit_rows, work.drawn) for work in works])
        requests = [work.request for work in works]
        if requests != self.requests:  # the same requests as in the last step have the same parameters
            self.requests = requests
            for array, values in zip(self._laws, zip(*map(_law, requests), strict=True), strict=True):
                array[: self.B] = values

    def fill_chains(
        self, tokens: NDArray[np.int32], lengths: NDArray[np.int32], tables: NDArray[np.int32]
    ) -> None:
        """Lay out a step of one node, with logits, for each of F chains that belong to no request.

        tokens [F]; lengths [F]: tokens whose KV is there; tables [F, <= W]: pages. For a model without sampling: there are no laws.
        """
        n = len(tokens)
        self._tokens[:n] = tokens
        self._parents[:n] = -1
        self._positions[:n] = lengths
        pages = tables[np.arange(n), lengths // self.page_size].astype(np.int64)
        self._slots[:n] = pages * self.page_size + lengths % self.page_size
        self._kv_len[:n] = lengths
        self._page_table[:n, : tables.shape[1]] = tables
        self._listed[:n] = [([], -1)] * n
        self._cu_t[: n + 1] = self._cu_r[: n + 1] = np.arange(n + 1)
        self._logit_rows[:n] = np.arange(n)
        self._row_tokens[:n] = tokens
        self._row_parents[:n] = -1
        self._root_positions[:n] = lengths
        self.T = self.R = self.B = n
        self.longest_path = 1
        self.requests = []

    def trees(self) -> tuple[Tensor, ...]:
        """What verify_tree takes besides logits: row_tokens, row_parents, cu_r, root_positions and the sampling parameters."""
        rows, offsets = slice(self.R), slice(self.B + 1)
        laws = (law[: self.B] for law in self.laws)
        roots = self.root_positions[: self.B]
        return self.row_tokens[rows], self.row_parents[rows], self.cu_r[offsets], roots, *laws


def _law(request: Request) -> tuple[float, int, float, float, float, int, int]:
    """The values of LAWS."""
    p, stream = request.params, request.params.stream_index + request.sample_index
    return p.temperature, p.top_k, p.top_p, p.min_p, p.typical_p, p.seed, stream


def _array(size: int, dtype: type = np.int32) -> tuple[Tensor, NDArray[np.integer]]:
    """A zeroed tensor and its numpy view (assignment through numpy costs a tenth)."""
    array: NDArray[np.integer] = np.zeros(size, dtype=dtype)
    return torch.from_numpy(array), array
