# SPDX-License-Identifier: Apache-2.0
"""The executor of GPUs: a step program op by op through one backend, on CUDA as captured graphs.

A step costs one copy to the device, one graph for the model, one for verification and compaction, and one wait for the tokens;
the host waits for nothing else, and nothing is allocated once the graphs of all sizes are captured. Without graphs, the same
code runs on the emulated backends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from pyspec import plans
from pyspec.calls import BackendCalls, send
from pyspec.engine.batch import LAWS, StepBatch
from pyspec.engine.device_program import Call, DeviceProgram, Run
from pyspec.engine.executor import Weights
from pyspec.engine.graphs import Graphs
from pyspec.engine.kv_pages import KVCache
from pyspec.engine.padded_batch import PaddedBatch
from pyspec.engine.verification import Verified, logprob_options
from pyspec.errors import UnsupportedError
from pyspec.models.program import Program

TREES = ("row_tokens", "row_parents", "cu_r")  # of verify_tree and verify_drawn, behind the logits
DRAWN = ("draft_row", "draft_temperature")  # of verify_drawn, behind the rows of the drafts


class GpuExecutor:
    """Runs steps on the device of `cache`, whose last pages are the padding's. Refuses at once what the backend cannot run."""

    def __init__(
        self,
        backend: str,
        program: Program,
        weights: Weights,
        cache: KVCache,
        batch: StepBatch,
        release_pages: Callable[[], None],
    ) -> None:
        device = cache.k.device
        self._on_cuda = device.type == "cuda"
        self.name = f"{backend}/{torch.cuda.get_device_name(device)}" if self._on_cuda else backend
        self._backend, self._batch, self._cache = backend, batch, cache
        self._calls = BackendCalls(backend, device)
        self._padded = PaddedBatch(batch, cache.num_pages, device)
        # A request's path is at most as long as its tree, the padding's at most two nodes.
        self._longest_path = max(2, batch.max_rows // batch.page_table.size(0))
        self._logits = torch.zeros(self._padded.max_rows, program.columns(program.logits), device=device)
        # The program's inputs and outputs have places of their own, which graphs read and write.
        rows_of = lambda names: {
            name: torch.zeros(self._padded.max_tokens, program.columns(name), device=device) for name in names
        }
        self._inputs, self._outputs = rows_of(program.inputs), rows_of(program.outputs)
        # What trees were drawn from, for verifiers that reject by it; the others never look at these rows.
        by_drafts = batch.drawn.verifier.walk not in ("", "target")
        self._draft_logits = torch.zeros_like(self._logits) if by_drafts else self._logits
        self._program = DeviceProgram(program, weights, cache, device, release_pages)
        self._rehearse()
        self._edited: Tensor | None = None  # made for the first request that edits its logits
        self._graphs = Graphs(device)

    def run(self) -> None:
        batch = self._padded
        batch.resize()
        self._graphs.run(("model", *batch.sizes), self._model, batch.send_blank, batch.send)

    def wait(self) -> None:
        self._calls.wait()

    def logits(self) -> Tensor:
        return self._logits[: self._batch.R]

    def write(self, name: str, rows: Tensor) -> None:
        self._inputs[name][: self._batch.T].copy_(rows)

    def read(self, name: str) -> Tensor:
        return self._outputs[name][: self._batch.T]

    def taps(self) -> Tensor:
        return self.read("taps")

    def verify(self, num_logprobs: int | None) -> Verified:
        batch, edited = self._padded, self._edit()
        if drafts := self._batch.drawn.draft_logits():
            rows = torch.cat(send(drafts, self._logits.device))
            self._draft_logits[: len(rows)].copy_(rows)
        body = partial(self._walk, self._calls, num_logprobs, edited)
        key = ("walk", *batch.sizes[1:], num_logprobs, edited is not None)
        results = self._graphs.run(key, body, batch.send_blank, batch.send)
        return Verified(*(out.numpy()[: self._batch.B] for out in self._calls.read_back(results)))

    def nbytes(self) -> dict[str, int]:
        places = {self._logits, self._draft_logits, *self._inputs.values(), *self._outputs.values()}
        buffers = self._padded.nbytes + sum(place.nbytes for place in places)
        return {"weights": self._program.nbytes, "buffers": buffers}

    def _plan(self, q: Tensor, pages: Tensor, indices: list[Tensor], window: int) -> Tensor:
        """What attention decides once a step, for all layers with this window."""
        sizes = (q.shape, pages.shape, q.dtype, pages.dtype, window, self._padded.nodes_per_request)
        return plans.make_workspace(self._backend, indices, *sizes)

    def _model(self) -> None:
        """Results go to buffers of their own: of a graph's memory only results outlive it, and these are large."""
        batch = self._padded
        plan = self._plan if self._backend in plans.WITH_WORKSPACE else None
        run = Run(self._calls, batch.inputs(), plan, batch.nodes_per_request)
        logits, outputs = self._program.run(run, self._step_inputs())
        self._logits[: batch.R].copy_(logits)
        for name, rows in outputs.items():
            self._outputs[name][: batch.T].copy_(rows)

    def _step_inputs(self) -> dict[str, Tensor]:
        """Copies, because steps may write into them: a graph runs again on what write() left."""
        return {name: rows[: self._padded.T].clone() for name, rows in self._inputs.items()}

    def _edit(self) -> Tensor | None:
        """The step's rows as its requests want them, in a place that graphs know. Its own arrays have sizes of their own: this
        launch is not captured."""
        batch = self._batch
        arguments = batch.edits.arguments(self._logits.size(1), *batch.trees()[:3])
        if arguments is None:
            return None
        if self._edited is None:
            self._edited = torch.zeros_like(self._logits)
        sent = send(arguments, self._logits.device)
        self._edited[: batch.R] = self._calls("edit_logits", self._logits[: batch.R], *sent)
        return self._edited[: self._padded.R]

    def _walk(self, call: Call, num_logprobs: int | None, edited: Tensor | None = None) -> tuple[Tensor, ...]:
        """Walk every tree and move the KV of accepted nodes in every layer; a path of 0, 1, 2 ... moves onto itself."""
        inputs = self._padded.inputs()
        results = self._verify(call, inputs, num_logprobs, edited)
        path, path_len, *_ = results
        pages = self._cache.all_layers()
        call("commit_kv", *pages, inputs["page_table"], inputs["kv_len"], path, path_len)
        return results

    def _verify(
        self, call: Call, inputs: Mapping[str, Tensor], num_logprobs: int | None, edited: Tensor | None
    ) -> tuple[Tensor, ...]:
        """The walk alone, as verify_on_host has it."""
        rows, walk = slice(self._padded.R), self._batch.drawn.verifier.walk
        trees = [inputs[name] for name in TREES]
        law = [inputs[name] for name in ("root_positions", *LAWS)]
        options = {"max_path": self._longest_path, **logprob_options(num_logprobs)}
        if walk:
            drawn = (inputs["drawn"], self._draft_logits[rows], *(inputs[name] for name in DRAWN))
            return call(
                "verify_drawn", self._logits[rows], *trees, *drawn, *law, edited, walk=walk, **options
            )
        return call("verify_tree", self._logits[rows], *trees, *law, edited, **options)

    def refusal(self, edits: bool, typical: bool) -> str:
        self._padded.stretch()
        inputs, logits = dict(self._padded.inputs()), self._logits[: self._padded.R]
        if typical:
            inputs["typical_p"] = torch.full_like(inputs["typical_p"], 0.5)
        tokens, parents, offsets = (inputs[name] for name in ("row_tokens", "row_parents", "cu_r"))
        penalties, history = [inputs["min_p"]] * 3, (tokens, tokens, offsets)
        try:
            if edits:
                args = (
                    tokens,
                    parents,
                    offsets,
                    *penalties,
                    *history,
                    tokens,
                    logits[:, 0],
                    offsets,
                    None,
                    parents,
                )
                self._calls.ask("edit_logits", logits, *args)
            self._verify(self._calls.ask, inputs, 0, logits if edits else None)
        except UnsupportedError as error:
            return str(error)
        return ""

    def _rehearse(self) -> None:
        """Ask the backend about every op of a step, on tensors of the right sizes."""
        try:
            self._program.run(Run(self._calls.ask, self._padded.inputs()), self._step_inputs())
            self._padded.stretch()
            self._walk(self._calls.ask, 0)
        except UnsupportedError as error:
            raise UnsupportedError(
                f"LLM: executor {self._backend!r} cannot run this model: {error}; executor='compiled' runs it on the CPU"
            ) from None
