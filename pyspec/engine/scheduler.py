# SPDX-License-Identifier: Apache-2.0
"""Who runs in the next step: admission by reserved pages, decode first, then prefill chunks under a token budget."""

from __future__ import annotations

from collections import deque

from pyspec.engine.kv_pages import PagePool
from pyspec.engine.request import Request


class Scheduler:
    """First come, first served. A request is admitted when pages for its longest possible state are free, so
    that a running request never waits for pages and is never preempted."""

    def __init__(
        self, pool: PagePool, max_batch: int, page_size: int, max_nodes: int, prefill_chunk: int
    ) -> None:
        self._pool, self._max_batch, self._page_size = pool, max_batch, page_size
        self._max_nodes, self._prefill_chunk = max_nodes, prefill_chunk
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def pages_needed(self, request: Request) -> int:
        """Pages for the prompt, every token that may be emitted, and the nodes of one tree."""
        tokens = len(request.prompt) + request.max_output + self._max_nodes
        return -(-tokens // self._page_size)

    def admit(self) -> None:
        """Move waiting requests to the running ones while there is a place and their pages are free."""
        while self.waiting and len(self.running) < self._max_batch:
            pages = self._pool.take(self.pages_needed(self.waiting[0]))
            if pages is None:
                return
            request = self.waiting.popleft()
            request.pages = pages
            self.running.append(request)

    def prefill_sizes(self) -> dict[Request, int]:
        """Prompt tokens that each running request still in prefill computes in this step."""
        budget, sizes = self._prefill_chunk, {}
        for request in self.running:
            if request.in_prefill and budget:
                sizes[request] = min(budget, len(request.prompt) - request.kv_len)
                budget -= sizes[request]
        return sizes

    def release(self, request: Request) -> None:
        """Take a request out, wherever it is, and free its pages and what its drafts hold. Safe to call twice."""
        if request in self.running:
            self.running.remove(request)
        if request in self.waiting:
            self.waiting.remove(request)
        if request.draft is not None:
            request.draft.close()
        self._pool.give_back(request.pages)
        request.pages = []
