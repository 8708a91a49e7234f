# SPDX-License-Identifier: Apache-2.0
"""The prompt of several samples: computed once, its KV shared by all of them.

The first sample that runs computes the prompt. The others begin when all of it but the last token is there: pages that are full are
shared, the one in which the prompt goes on is copied, and each computes the last token itself, for the logits that its own first token is
drawn from. No sample writes to a shared page: what it writes lies behind the prompt. A row's bits depend on its own inputs alone,
so every sample gets the tokens of one that computed its whole prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyspec.engine.kv_pages import PagePool

if TYPE_CHECKING:
    from pyspec.engine.request import Request

CopyPages = Callable[[list[int], list[int]], None]


class SharedPrompt:
    """What the samples of one prompt of at least two tokens have in common. Its pages go when the last of them has begun or ended."""

    def __init__(self, length: int, page_size: int, pool: PagePool, copy_pages: CopyPages) -> None:
        """length: tokens of the prompt; copy_pages(sources, targets) of the cache."""
        self._length, self._pool, self._copy_pages = length, pool, copy_pages
        self.whole_pages = (length - 1) // page_size  # that a sample does not need of its own
        self._partial = bool((length - 1) % page_size)
        self._waiting: set[Request] = set()
        self._first: Request | None = None
        self._held: list[int] | None = (
            None  # pages of the prompt after the sample that computed them has ended
        )
        self._features: list[Tensor] = []

    def join(self, requests: Iterable[Request]) -> None:
        """These samples have the prompt."""
        for request in requests:
            request.shared = self
            self._waiting.add(request)

    @property
    def ready(self) -> bool:
        """Whether a sample can begin behind what was computed."""
        return self._pages() is not None

    @property
    def computing(self) -> bool:
        """Whether a sample is about to compute it, for which the others wait."""
        return self._first is not None and not self.ready

    def keep(self, request: Request, features: Tensor) -> None:
        """Rows [n, columns] of the next tokens of a sample's prompt, as drafts with taps get them: others may wait for them."""
        if request is self._first and self._waiting:
            self._features.append(features.clone())

    def features(self) -> Tensor | None:
        """Rows of all tokens of the prompt but the last, if they were kept."""
        return torch.cat(self._features)[: self._length - 1] if self._features else None

    def lead(self, request: Request) -> None:
        """This sample computes the prompt."""
        self._waiting.discard(request)
        self._first, self._features = request, []

    def fork(self, request: Request, own: list[int]) -> None:
        """A sample begins behind the prompt's last token but one, with pages of its own for what is not shared."""
        pages = self._pages()
        assert pages is not None, "the prompt is not computed"
        shared = pages[: self.whole_pages]
        self._pool.share(shared)
        if self._partial:
            self._copy_pages([pages[self.whole_pages]], own[:1])
        request.pages, request.kv_len = shared + own, self._length - 1
        self._waiting.discard(request)
        if not self._waiting:
            self._let_go()

    def leave(self, request: Request) -> None:
        """A sample ends, begun or not, before its pages are given back. Safe to call twice."""
        self._waiting.discard(request)
        if request is self._first:
            if self._waiting and (pages := self._pages()) is not None:
                self._held = pages[: self.whole_pages + self._partial]
                self._pool.share(self._held)
            self._first = None
        if not self._waiting:
            self.drop()

    def drop(self) -> None:
        """Give up what is kept for samples that wait: one of them computes the prompt again, or there are none."""
        self._let_go()
        self._features = []

    def _let_go(self) -> None:
        if self._held is not None:
            self._pool.give_back(self._held)
        self._held = None

    def _pages(self) -> list[int] | None:
        """Pages that hold the prompt up to its last token but one."""
        first = self._first
        return first.pages if first is not None and first.kv_len >= self._length - 1 else self._held
