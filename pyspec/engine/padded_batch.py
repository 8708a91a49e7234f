# SPDX-License-Identifier: Apache-2.0
"""The arrays of a step on a device, padded to a few sizes.

The padding is a request of its own, the last one: a chain of nodes on pages that no other request has, so that every op sees a
batch that keeps its contract, and no row depends on another (docs/structure.md). Requests that the batch lacks have no nodes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyspec.engine.batch import LAWS, StepBatch
from pyspec.engine.graphs import bucket, buckets
from pyspec.engine.staging import Shape, Staging

PER_NODE = ("tokens", "positions", "parents", "slots")
PER_ROW = ("logit_rows", "row_tokens", "row_parents")
OFFSETS = ("cu_t", "cu_r")
PER_REQUEST = ("kv_len", "root_positions", *LAWS)
DRAWN = {
    "drawn": torch.int32,
    "draft_row": torch.int32,
    "draft_temperature": torch.float32,
}  # of verify_drawn


def padding_pages(max_tokens: int, page_size: int) -> int:
    """Pages of the padding: a slot per node of the largest step, which may be padding alone."""
    return -(-buckets(max_tokens)[-1] // page_size)


class PaddedBatch:
    """Sends a batch to the device. T nodes, R rows of logits and B requests are the padded sizes of the batch sent last; the
    padding is request B, besides them."""

    def __init__(self, batch: StepBatch, num_pages: int, device: torch.device) -> None:
        """`num_pages` of the cache, whose last ones are the padding's."""
        self._sizes = buckets(batch.max_tokens)
        self.max_tokens, self.max_rows = self._sizes[-1], bucket(batch.max_rows, self._sizes)
        self._batch, self._page_size = batch, batch.page_size
        self._nobody = StepBatch(1, 1, 1, 1, batch.page_size)
        count = padding_pages(batch.max_tokens, batch.page_size)
        self._pages = np.arange(num_pages - count, num_pages, dtype=np.int32)
        max_batch, width = batch.page_table.shape
        self._requests = buckets(max_batch)
        most = self._requests[-1]
        drawn = DRAWN if batch.drawn.verifier.walk else {}
        self._per_row = *PER_ROW, *(name for name in drawn if name != "draft_temperature")
        self._per_request = *PER_REQUEST, *(name for name in drawn if name == "draft_temperature")
        lengths = {
            **dict.fromkeys(PER_NODE, self._sizes[-1]), **dict.fromkeys(self._per_row, self.max_rows),
            **dict.fromkeys(OFFSETS, most + 2), **dict.fromkeys(self._per_request, most + 1),
        }  # fmt: skip
        dtypes = {name: torch.from_numpy(array).dtype for name, array in batch.arrays.items()} | drawn
        layout: dict[str, tuple[Shape, torch.dtype]] = {
            name: ((length,), dtypes[name]) for name, length in lengths.items()
        }
        layout["page_table"] = (most + 1, max(width, count)), torch.int32
        self._staging = Staging(layout, device)
        self.T = self.R = self.B = 1
        self._holds: StepBatch | None = None

    @property
    def nbytes(self) -> int:
        return self._staging.nbytes

    @property
    def sizes(self) -> tuple[int, int, int]:
        """T, R and B: steps of one size run the same launches."""
        return self.T, self.R, self.B

    @property
    def nodes_per_request(self) -> int:
        return -(-self.T // self.B)

    def resize(self) -> None:
        """Take the padded sizes of the batch as it is filled now; what was sent before is gone."""
        self.T, self.R = (bucket(max(1, n), self._sizes) for n in (self._batch.T, self._batch.R))
        self.B = bucket(max(1, self._batch.B), self._requests)
        self._holds = None

    def stretch(self) -> None:
        """Take the largest sizes, for questions about shapes alone."""
        self.T, self.R, self.B = self.max_tokens, self.max_rows, self._requests[-1]

    def send(self) -> None:
        """Send the batch, unless it is there."""
        if self._holds is not self._batch:
            self._send(self._batch)

    def send_blank(self) -> None:
        """Send a batch of the same sizes that is padding alone."""
        self._send(self._nobody)

    def inputs(self) -> dict[str, Tensor]:
        """The arrays on the device, of the padded sizes."""
        cut = {
            **dict.fromkeys(PER_NODE, self.T), **dict.fromkeys(self._per_row, self.R),
            **dict.fromkeys(OFFSETS, self.B + 2), **dict.fromkeys((*self._per_request, "page_table"), self.B + 1),
        }  # fmt: skip
        return {name: array[: cut[name]] for name, array in self._staging.device.items()}

    def _send(self, batch: StepBatch) -> None:
        T, R, B, arrays = batch.T, batch.R, batch.B, self._staging.fill()
        sizes = {
            **dict.fromkeys(PER_NODE, T), **dict.fromkeys(self._per_row, R),
            **dict.fromkeys(OFFSETS, B + 1), **dict.fromkeys(self._per_request, B),
        }  # fmt: skip
        given = batch.arrays if self._per_row == PER_ROW else batch.arrays | batch.drawn.per_node()
        for name, size in sizes.items():
            arrays[name][:size] = given[name][:size]
        chain, nodes = np.arange(self.T - T, dtype=np.int32), slice(T, self.T)
        arrays["tokens"][nodes] = 0
        arrays["positions"][nodes] = chain
        arrays["parents"][nodes] = chain - 1
        arrays["slots"][nodes] = int(self._pages[0]) * self._page_size + chain
        # Rows of padding are a root and its children, all of token 0: their walk ends after two tokens at most. Where it matters how
        # they were drawn, they are drawn one like the other, from a law of one token by some row.
        rows = slice(R, self.R)
        for name in self._per_row:
            arrays[name][rows] = 1 if name == "drawn" else 0
        arrays["row_parents"][R : min(R + 1, self.R)] = -1
        for name, used, padded in (("cu_t", T, self.T), ("cu_r", R, self.R)):
            arrays[name][B + 1 : self.B + 1] = used
            arrays[name][self.B + 1] = padded
        for name in self._per_request:
            arrays[name][B:] = 1 if name in ("top_p", "typical_p") else 0
        table = arrays["page_table"]
        table[:B, : batch.page_table.size(1)] = batch.arrays["page_table"][:B]
        table[B : self.B] = self._pages[0]
        table[self.B, : len(self._pages)] = self._pages
        self._staging.send()
        self._holds = batch
