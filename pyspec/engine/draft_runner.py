# SPDX-License-Identifier: Apache-2.0
"""The model of a draft: a step program with a batch, a KV cache and an executor of its own.

Every request has a text: entries whose KV is in the cache. To grow a tree, its frontier nodes become chains behind that text: the
text's whole pages are shared, the page where it ends and those behind it are a chain's own. The first chain goes on in the
text's pages (what lies behind the text is nobody's), so a tree without branches copies nothing; others copy the few pages
of the chain that they branch off from. A level of the growth is one forward with one row per frontier node of all requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyspec.calls import take_rows
from pyspec.engine.batch import StepBatch, Work
from pyspec.engine.executor import Executor, Weights, calls_of, device_of, make_executor, spare_pages
from pyspec.engine.kv_pages import KVCache, PagePool
from pyspec.engine.request import Request
from pyspec.engine.sampling_params import SamplingParams
from pyspec.engine.text import TextStream
from pyspec.models.program import Program


@dataclass(frozen=True)
class DraftSizes:
    """What a draft's model must hold.

    layers, kv_heads, head_dim, kv_dtype, page_size   of its KV cache
    max_batch    requests at once; max_entries of each, behind which trees grow up to max_depth
    beam         frontier nodes of one request in one level, at least 1
    chunk        entries of a forward that follows the texts
    text_pages   of all texts together: as many as the target has for the same texts, a page more for each
    """

    layers: int
    kv_heads: int
    head_dim: int
    kv_dtype: torch.dtype
    page_size: int
    max_batch: int
    max_entries: int
    max_depth: int
    beam: int
    chunk: int
    text_pages: int


@dataclass(eq=False)
class DraftText:
    """The entries of one request. Its pages come as it grows and go with close()."""

    row: Request  # what a batch knows of it: pages, and kv_len entries whose KV is there
    private: list[int] = field(default_factory=list)  # pages of the chains that branch off

    @property
    def length(self) -> int:
        return self.row.kv_len


class DraftRunner:
    """Follows texts and runs levels. `program` computes entries of texts, `branch` those of trees (by default the same program).

    A program may have one input and one output (see pyspec.models.program): rows [n, columns] f32 go in and come out beside the
    tokens. Both programs have the output, or neither.
    """

    def __init__(
        self,
        executor: str,
        sizes: DraftSizes,
        weights: Weights,
        release_pages: Callable[[], None],
        program: Program,
        branch: Program | None = None,
    ) -> None:
        """executor: a resolved one. UnsupportedError if it cannot run a program."""
        self.sizes, self.calls = sizes, calls_of(executor)
        size, chains = sizes.page_size, sizes.max_batch * sizes.beam
        self._width = -(-(sizes.max_entries + sizes.max_depth) // size)
        # A chain's own pages: from the one in which the text ends to the one in which the deepest node lies.
        self._tail = 1 + (size - 1 + sizes.max_depth) // size
        longest = sizes.max_batch * self._width
        pages = min(longest, sizes.text_pages) + sizes.max_batch * (sizes.beam - 1) * self._tail
        self._batch = StepBatch(max(sizes.chunk, chains), chains, chains, self._width + self._tail, size)
        self._pool = PagePool(pages)
        self._cache = KVCache(
            sizes.layers, pages + spare_pages(executor, self._batch), size, sizes.kv_heads, sizes.head_dim,
            sizes.kv_dtype, device_of(executor),
        )  # fmt: skip
        make = lambda p: make_executor(executor, p, weights, self._cache, self._batch, release_pages)
        self._executor = make(program)
        self._branch = self._executor if branch is None else make(branch)
        self._inputs = {self._executor: program.inputs, self._branch: (branch or program).inputs}
        self._output = program.outputs[0] if program.outputs else None

    @property
    def free_pages(self) -> int:
        return self._pool.free_pages

    @property
    def num_pages(self) -> int:
        return self._pool.num_pages

    def nbytes(self) -> int:
        """KV and buffers, in bytes; weights are whose they are."""
        executors: set[Executor] = {self._executor, self._branch}
        return self._cache.nbytes + sum(executor.nbytes()["buffers"] for executor in executors)

    def open(self) -> DraftText:
        """A text without entries."""
        return DraftText(Request([], SamplingParams(), TextStream(None, ()), None, 1))

    def close(self, text: DraftText) -> None:
        """Give back a text's pages. Safe to call twice."""
        self._pool.give_back(text.row.pages + text.private)
        text.row.pages, text.private, text.row.kv_len = [], [], 0

    def follow(
        self, texts: Sequence[DraftText], tokens: Sequence[Sequence[int]], inputs: Sequence[Tensor] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Append tokens[i] (at least one), with its rows of input, to texts[i]; logits [B, V] and output [B, columns] of the last.

        Rows of input and results lie where the executor has them. Results are valid until the next call. ValueError for a text that
        grows beyond max_entries.
        """
        left = [np.asarray(part, dtype=np.int32) for part in tokens]
        for text, part in zip(texts, left, strict=True):
            if reason := self.reserve(text, text.length + len(part)):
                raise ValueError(f"DraftRunner: {reason}")
        done = [0] * len(texts)
        found: list[tuple[Tensor, Tensor | None]] = []
        ends: list[int] = []  # texts in the order in which their last entries were computed
        while len(ends) < len(texts):
            if found:  # of a run that the next one overwrites
                found[-1] = found[-1][0].clone(), found[-1][1]
            works, rows, room = [], [], self._batch.max_tokens
            for i, (text, part) in enumerate(zip(texts, left, strict=True)):
                count = min(room, len(part) - done[i])
                if count:
                    stop = done[i] + count
                    works.append(_work(text.row, part[done[i] : stop], stop == len(part)))
                    rows += [] if inputs is None else [inputs[i][done[i] : stop]]
                    ends += [i] if stop == len(part) else []
                    room, done[i] = room - count, stop
            self._batch.fill(works)
            self._run(self._executor, torch.cat(rows) if len(rows) > 1 else rows[0] if rows else None)
            for work in works:
                work.request.kv_len += len(work.tokens)
            if self._batch.R:
                last = self._batch.logit_rows[: self._batch.R]
                output = None if self._output is None else take_rows(self._executor.read(self._output), last)
                found.append((self._executor.logits(), output))
        if len(found) == 1:
            return found[0]
        order = torch.tensor(np.argsort(ends))
        outputs = [output for _, output in found if output is not None]
        logits = take_rows(torch.cat([part for part, _ in found]), order)
        return logits, take_rows(torch.cat(outputs), order) if outputs else None

    def branches(self, text: DraftText) -> Branches:
        """The chains of a tree that grows behind a text."""
        return Branches(self, text)

    def step(
        self,
        tokens: NDArray[np.int32],
        lengths: NDArray[np.int32],
        tables: NDArray[np.int32],
        inputs: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """One level: F chains (see StepBatch.fill_chains) a node further. Logits [F, V] and output [F, columns], until the next call."""
        self._batch.fill_chains(tokens, lengths, tables)
        self._run(self._branch, inputs)
        output = None if self._output is None else self._branch.read(self._output)
        return self._branch.logits(), output

    def _run(self, executor: Executor, rows: Tensor | None) -> None:
        for name in self._inputs[executor]:
            assert rows is not None, "the program has an input"
            executor.write(name, rows)
        executor.run()

    def reserve(self, text: DraftText, entries: int) -> str:
        """Take the pages that a text of so many entries needs with its trees, if it has fewer; why there are none, or ""."""
        sizes, row = self.sizes, text.row
        if entries > sizes.max_entries:
            return f"entries must be at most {sizes.max_entries}, got {entries}"
        wanted = -(-(entries + sizes.max_depth) // sizes.page_size) - len(row.pages)
        private = 0 if text.private else (sizes.beam - 1) * self._tail
        if wanted <= 0 and not private:
            return ""
        pages = self._pool.take(max(0, wanted) + private)
        if pages is None:
            return f"texts must fit {self.num_pages} pages, got one that needs {wanted + private} of {self.free_pages} free ones"
        text.private += pages[:private]
        row.pages += pages[private:]
        return ""

    def copy(self, sources: list[int], targets: list[int]) -> None:
        """Copy pages."""
        self._cache.copy_pages(sources, targets)

    def table(self, text: DraftText) -> NDArray[np.int32]:
        """int32 [beam, W]: the page tables of a text's chains."""
        table = np.zeros((self.sizes.beam, self._width + self._tail), dtype=np.int32)
        table[:, : len(text.row.pages)] = text.row.pages
        first = text.row.kv_len // self.sizes.page_size
        private = np.array(text.private, dtype=np.int32).reshape(self.sizes.beam - 1, self._tail)
        table[1:, first : first + self._tail] = private
        return table


class Branches:
    """Where the frontier of one tree lies: each node has a place, a row of `table`."""

    def __init__(self, runner: DraftRunner, text: DraftText) -> None:
        self._runner, self._size = runner, runner.sizes.page_size
        self._start = text.length
        self._length = text.length  # entries on every path to the frontier
        self.table = runner.table(text)
        self._places = [0]  # of the frontier's nodes; the root's KV is the text's last

    def advance(self, parents: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The next frontier: node j below place parents[j] of the last one (the root's: 0). Its lengths and tables for step().

        One child of a node goes on in its pages; the others copy them. At most `beam` nodes.
        """
        taken = dict.fromkeys(self._places[parent] for parent in parents)
        free = [place for place in range(len(self.table)) if place not in taken]
        first, last = self._start // self._size, (self._length - 1) // self._size
        places: list[int] = []
        sources: list[int] = []
        targets: list[int] = []
        going: set[int] = set()
        for parent in parents:
            place = self._places[parent]
            if place not in going:
                going.add(place)
                places.append(place)
                continue
            places.append(free.pop())
            sources += self.table[place, first : last + 1].tolist()
            targets += self.table[places[-1], first : last + 1].tolist()
        if sources:
            self._runner.copy(sources, targets)
        self._places = places
        lengths = np.full(len(places), self._length, dtype=np.int32)
        self._length += 1
        return lengths, self.table[places]


def _work(row: Request, tokens: NDArray[np.int32], last: bool) -> Work:
    depths = np.arange(len(tokens), dtype=np.int32)
    return Work(row, tokens, depths - 1, depths, int(last))
