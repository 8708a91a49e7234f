# SPDX-License-Identifier: Apache-2.0
"""Pages of the KV cache: who owns which, and the tensors behind them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyspec.calls import send
from pyspec.engine import huge_pages


class PagePool:
    """A free list of page numbers. Pages are reserved at admission, so a running request can never run out.

    A page that was taken can be shared: it is free again when everybody who has it has given it back.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._more: dict[int, int] = {}  # owners besides the first, of pages with several

    @property
    def free_pages(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int] | None:
        """`count` pages, or None (and nothing taken) if there are not that many."""
        if count > len(self._free):
            return None
        taken = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        return taken

    def share(self, pages: list[int]) -> None:
        """One more owner of pages that are taken."""
        for page in pages:
            self._more[page] = self._more.get(page, 0) + 1

    def give_back(self, pages: list[int]) -> None:
        """One owner less of each."""
        for page in pages:
            if page not in self._more:
                self._free.append(page)
            elif self._more[page] == 1:
                del self._more[page]
            else:
                self._more[page] -= 1
        assert len(self._free) <= self.num_pages, "a page was given back twice"


class KVCache:
    """K and V pages [P, S, G, D] of every layer, in the layout of the executor (see tree_attention's kv_layout).

    Pages of int8 have scales [P, S, G] f32 beside them (see append_kv), others None.
    """

    def __init__(
        self,
        num_layers: int,
        num_pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> None:
        shape = (num_layers, num_pages, page_size, kv_heads, head_dim)
        on_host = device is None or device.type == "cpu"
        make = huge_pages.zeros if on_host else lambda s, kind: torch.zeros(s, dtype=kind, device=device)
        self.k, self.v = (make(shape, dtype) for _ in range(2))
        self.k_scale, self.v_scale = (
            make(shape[:4], torch.float32) if dtype == torch.int8 else None for _ in range(2)
        )
        self.page_size, self.num_pages = page_size, num_pages

    def layer(self, i: int) -> tuple[Tensor, Tensor]:
        return self.k[i], self.v[i]

    def scales(self, i: int) -> tuple[Tensor | None, Tensor | None]:
        """Scales of layer i's K and V pages, or None for each."""
        k, v = self.k_scale, self.v_scale
        return (None, None) if k is None or v is None else (k[i], v[i])

    def all_layers(self) -> tuple[Tensor, Tensor]:
        """K and V of all layers as pages [P, S, layers, G D], for commit_kv of GPUs: one launch, layers in place of heads."""
        k, v = (pages.permute(1, 2, 0, 3, 4).flatten(3) for pages in (self.k, self.v))
        return k, v

    def copy_pages(self, sources: list[int], targets: list[int]) -> None:
        """Copy whole pages of every layer; no target is a source."""
        if not sources:
            return
        if self.k.device.type != "cpu":
            read, written = send([torch.tensor(sources), torch.tensor(targets)], self.k.device)
            for pages in (self.k, self.v):
                pages.index_copy_(1, written, pages.index_select(1, read))
            return
        for pages in self._tensors():
            # By numpy on the CPU: torch wakes its threads for a few kilobytes, and waits for them on a busy machine.
            raw: Any = pages.view(torch.uint8).numpy()
            raw[:, targets] = raw[:, sources]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors())

    def _tensors(self) -> list[Tensor]:
        return [t for t in (self.k, self.v, self.k_scale, self.v_scale) if t is not None]
