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

    def admit(self) -> list[Request]:
        """Move waiting requests to the running ones while there is a place and their pages are free; returns those.

        A sample whose prompt is being computed for another one is passed over; others keep their order.
        """
        admitted: list[Request] = []
        passed = 0
        while passed < len(self.waiting) and len(self.running) < self._max_batch:
            request = self.waiting[passed]
            if request.shared is not None and request.shared.computing:
                passed += 1
            elif self._take_pages(request):
                del self.waiting[passed]
                self.running.append(request)
                admitted.append(request)
            elif self.running or not self._drop_prompts():
                break
        return admitted

    def _take_pages(self, request: Request) -> bool:
        """Pages for a request: its own, or behind its prompt where another sample has computed that."""
        shared, needed = request.shared, self.pages_needed(request)
        forks = shared is not None and shared.ready
        pages = self._pool.take(needed - shared.whole_pages if shared is not None and forks else needed)
        if pages is None:
            return False
        if shared is None or not forks:
            request.pages = pages
            if shared is not None:
                shared.lead(request)
        else:
            shared.fork(request, pages)
        return True

    def _drop_prompts(self) -> bool:
        """Where nobody runs, and so nobody will give back pages: those kept for samples that wait; whether that freed any."""
        before = self._pool.free_pages
        for request in self.waiting:
            if request.shared is not None:
                request.shared.drop()
        return self._pool.free_pages > before

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
        if request.shared is not None:
            request.shared.leave(request)
        self._pool.give_back(request.pages)
        request.pages = []
