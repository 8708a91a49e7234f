# SPDX-License-Identifier: Apache-2.0
"""What steps cost, measured when an LLM is made: the model by nodes, context and batch (cached), verification by kind of sampling."""

from __future__ import annotations

import hashlib
import importlib.util
import time
from functools import lru_cache
from pathlib import Path

import torch

from pyspec import backends, machine
from pyspec.engine.batch import StepBatch, Work
from pyspec.engine.executor import Executor
from pyspec.engine.request import Request
from pyspec.engine.sampling_params import SamplingParams
from pyspec.engine.text import TextStream
from pyspec.trees.cost import CostTable
from pyspec.trees.online import LinearCost, StepCost
from pyspec.trees.token_tree import TokenTree

GREEDY_BELOW = 2**-16  # temperatures under it are greedy, see pyspec/spec/pipeline.py
# The CPU's products take tiles of eight rows: a node that opens a new one costs several times as much as its neighbours.
NODES = (1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 17, 24, 25, 32, 33, 48, 64, 128, 256, 512, 1024)
CONTEXTS = (64, 2048)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
ROUNDS = 15  # about four seconds for a model of 100 MB, once per machine
KINDS = {
    "greedy": SamplingParams(),
    "sampled": SamplingParams(temperature=1.0),
    "filtered": SamplingParams(temperature=1.0, top_p=0.95),
}


def sampling_kind(params: SamplingParams) -> str:
    """What verification costs depends on: "greedy", "sampled" or "filtered", with "+edits" where logits are changed first."""
    filters = params.top_k or params.top_p < 1 or params.min_p > 0 or params.typical_p < 1
    kind = "greedy" if params.temperature < GREEDY_BELOW else "filtered" if filters else "sampled"
    return f"{kind}+edits" if params.edits else kind


@lru_cache
def kernels_digest() -> str:
    """16 hexadecimal digits of the kernels that are installed: new ones cost something else, so old tables tell nothing of them.

    Of the compiled extension's file, of the Triton sources, and of torch's version, which the specification runs on.
    """
    digest = hashlib.sha256(torch.__version__.encode())
    found = importlib.util.find_spec("pyspec.kernels")
    folders = [] if found is None else found.submodule_search_locations or []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.py"))]
    for file in files if backends.native is None else [Path(backends.native.__file__), *files]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


class CostMeter:
    """Runs steps of made-up requests on an executor, over pages that nobody uses: their KV is overwritten.

    num_pages pages are shared out among the requests; where there are too few they overlap, which changes no time.
    """

    def __init__(self, executor: Executor, batch: StepBatch, num_pages: int) -> None:
        self._executor, self._batch, self._num_pages = executor, batch, num_pages

    def lay_out(self, nodes: int, context: int, count: int, params: SamplingParams = KINDS["greedy"]) -> None:
        """A step of `count` requests with `nodes` nodes in all: chains behind `context` tokens."""
        width = self._batch.page_table.size(1)
        works = []
        for b in range(count):
            size = nodes * (b + 1) // count - nodes * b // count
            needed = -(-(context + size) // self._batch.page_size)
            pages = [(b * width + i) % self._num_pages for i in range(needed)]
            request = Request([0], params, TextStream(None, ()), None, 1, pages=pages, kv_len=context)
            works.append(Work.decode(request, TokenTree.chain([0] * size)))
        self._batch.fill(works)

    def step(self, nodes: int, context: int, count: int) -> None:
        """One step of the model."""
        self.lay_out(nodes, context, count)
        self._executor.run()
        self._executor.wait()

    def verify_cost(self, kind: str, most: int, repeats: int = 5) -> LinearCost:
        """Seconds of verification by rows, from steps of 1 and of `most` rows."""
        seconds = []
        for rows in (1, most):
            self.lay_out(rows, 1, 1, KINDS[kind])
            self._executor.run()
            times = []
            for _ in range(repeats + 1):
                start = time.perf_counter()
                self._executor.verify(None)
                times.append(time.perf_counter() - start)
            seconds.append(min(times[1:]))
        slope = max(0.0, (seconds[1] - seconds[0]) / (most - 1)) if most > 1 else 0.0
        # The host's part comes with the first steps: little weight for what the op alone takes.
        return LinearCost(max(0.0, seconds[0] - slope), slope, weight=0.2, free=8)

    def measure(self, key: str, max_nodes: int, max_batch: int, max_context: int) -> StepCost:
        """Costs for this machine and these kernels: the model's table is kept under `key` (model, executor, threads ...)."""
        nodes = sorted({max_nodes, *(n for n in NODES if n <= max_nodes)})
        room = min(self._num_pages * self._batch.page_size, max_context) - max_nodes
        contexts = sorted({max(0, min(context, room)) for context in CONTEXTS})
        batches = [b for b in BATCHES if b <= max_batch]
        shape = f"nodes={nodes} contexts={contexts} batches={batches} rounds={ROUNDS}"
        key = f"{machine.cpu_model()} kernels={kernels_digest()} {key} {shape}"
        table = CostTable.cached(key, lambda: CostTable.measure(self.step, nodes, contexts, batches, ROUNDS))
        most = min(max_nodes, 8)
        return StepCost(table, {kind: self.verify_cost(kind, most) for kind in KINDS})
