# SPDX-License-Identifier: Apache-2.0
"""A step program on a device: its weights there, and one function per step that runs it through one backend's ops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from pyspec.engine.executor import Weights
from pyspec.engine.kv_pages import KVCache
from pyspec.models.program import Program, Ref, Step
from pyspec.models.quant_formats import QuantTensor

Call = Callable[..., Any]  # call(op, *args, **kwargs)


class Registers:
    """Results by the columns they stand for: a later result of some columns takes their place, nothing is copied.

    Columns that are written in parts and read as a whole are joined.
    """

    def __init__(self) -> None:
        self._results: dict[Ref, Tensor] = {}  # no two of them share a column

    def write(self, ref: Ref, result: Tensor) -> None:
        for other in [other for other in self._results if _overlap(other, ref)]:
            held = self._results.pop(other)
            for start, end in ((other.start, ref.start), (_end(ref), _end(other))):  # what is left of it
                if start < end:
                    rest = held[:, start - other.start : end - other.start]
                    self._results[Ref(other.buffer, start, end - start)] = rest
        self._results[ref] = result

    def read(self, ref: Ref) -> Tensor:
        if ref in self._results:
            return self._results[ref]
        found = sorted(
            (other for other in self._results if _overlap(other, ref)), key=lambda other: other.start
        )
        parts = []
        for other in found:
            start, end = max(ref.start, other.start), min(_end(ref), _end(other))
            parts.append(self._results[other][:, start - other.start : end - other.start])
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def heads(self, ref: Ref, count: int) -> Tensor:
        """[T, count, D] of a register."""
        return self.read(ref).unflatten(1, (count, ref.size // count))


def _end(ref: Ref) -> int:
    return ref.start + ref.size


def _overlap(one: Ref, other: Ref) -> bool:
    return one.buffer == other.buffer and one.start < _end(other) and other.start < _end(one)


INDICES = ("page_table", "kv_len", "cu_t", "parents")  # of tree_attention


@dataclass(frozen=True)
class Run:
    """One run of the program: how ops are called, the step's arrays on the device (see StepBatch), and results so far.

    plan(q, k_pages, indices, window) makes what the attention of all layers with one window shares; None if nothing does.
    node_count: see pyspec/plans.py.
    """

    call: Call
    inputs: Mapping[str, Tensor]
    plan: Callable[..., Tensor] | None = None
    node_count: int = 0
    registers: Registers = field(default_factory=Registers)
    workspaces: dict[int, Tensor] = field(default_factory=dict)  # by window

    def attend(self, q: Tensor, pages: tuple[Tensor, Tensor], **options: Any) -> Tensor:
        indices = [self.inputs[name] for name in INDICES]
        if self.plan is None:
            out, _ = self.call("tree_attention", q, *pages, *indices, **options)
            return out
        window = options["window"]
        if window not in self.workspaces:
            self.workspaces[window] = self.plan(q, pages[0], indices, window)
        args = (q, *pages, *indices, None, None, None, self.workspaces[window])
        out, _ = self.call("tree_attention_run", *args, node_count=self.node_count, **options)
        return out


RunStep = Callable[[Run], None]


class DeviceProgram:
    """The steps of a program. HF weights lie on the device as bf16|f32 rows, GGUF weights as the rows of the file."""

    def __init__(
        self,
        program: Program,
        weights: Weights,
        cache: KVCache,
        device: torch.device,
        release_pages: Callable[[], None],
    ) -> None:
        self._cache, self._device = cache, device
        self._source, self._release_pages = weights, release_pages
        self._held = weights.packed  # rows or vectors, joined, by the names of their parts
        self._formats: dict[str, str] = {}  # of weights with rows: a GGUF format, or "" for floats
        self._logits = program.steps[-1].output
        self._outputs = [Ref(name, 0, program.columns(name)) for name in program.outputs]
        self._steps: list[RunStep] = [getattr(self, "_" + step.op)(step) for step in program.steps]
        del self._source

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._held.values())

    def run(self, run: Run, inputs: Mapping[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits [R, V] of the nodes in run.inputs and the program's outputs; their KV is written to the cache.

        inputs: the program's own [T, columns] f32, which steps may write into.
        """
        for name, rows in (inputs or {}).items():
            run.registers.write(Ref(name, 0, rows.size(1)), rows)
        for step in self._steps:
            step(run)
        outputs = {ref.buffer: run.registers.read(ref) for ref in self._outputs}
        return run.registers.read(self._logits), outputs

    def _format(self, name: str) -> str:
        if name not in self._formats:
            weight = self._source[name]
            self._formats[name] = weight.format if isinstance(weight, QuantTensor) else ""
        return self._formats[name]

    def _rows(self, names: tuple[str, ...]) -> Tensor:
        """The rows of all these weights, one below the other; one copy serves the embedding and a tied head."""
        if names not in self._held:
            parts = [self._source[name] for name in names]
            rows = [part.data if isinstance(part, QuantTensor) else _widened(part) for part in parts]
            self._held[names] = (torch.cat(rows) if len(rows) > 1 else rows[0].contiguous()).to(self._device)
            for name in names:
                self._source.pop(name, None)
            self._release_pages()
        return self._held[names]

    def _vector(self, names: tuple[str, ...]) -> Tensor | None:
        """f32 vectors joined, or a table; None for no names."""
        if names and names not in self._held:
            parts = [self._source[name] for name in names]
            self._held[names] = torch.cat([part.float() for part in parts]).to(self._device)  # type: ignore[union-attr]
        return self._held[names] if names else None

    def _embedding(self, step: Step) -> RunStep:
        (name,), scale = step.weights, step.attrs["scale"]
        format = self._format(name)
        rows = self._rows((name,))
        op = "quant_embedding" if format else "embedding"
        options = {"format": format, "scale": scale} if format else {"scale": scale}
        return lambda run: run.registers.write(
            step.output, run.call(op, run.inputs["tokens"], rows, **options)
        )

    def _linear(self, step: Step) -> RunStep:
        """One call per run of neighbouring parts of one format."""
        parts, (x,) = step.attrs["parts"], step.inputs
        calls = []
        for format, group in groupby(range(parts), lambda i: self._format(step.weights[i])):
            indices = list(group)
            rows = self._rows(tuple(step.weights[i] for i in indices))
            with_bias = len(step.weights) > parts
            bias = self._vector(tuple(step.weights[parts + i] for i in indices) if with_bias else ())
            calls.append((rows, bias, format))

        def run_step(run: Run) -> None:
            rows_of_x = run.registers.read(x)
            results = [
                run.call("quant_linear", rows_of_x, rows, bias, format=format)
                if format
                else run.call("linear", rows_of_x, rows, bias)
                for rows, bias, format in calls
            ]
            run.registers.write(step.output, torch.cat(results, 1) if len(results) > 1 else results[0])

        return run_step

    def _rms_norm(self, step: Step) -> RunStep:
        weight, heads, eps = self._vector(step.weights), step.attrs.get("heads", 1), step.attrs["eps"]

        def run_step(run: Run) -> None:
            x = run.registers.read(step.inputs[0])
            rows = x.reshape(-1, x.size(1) // heads)  # a head of a node is a row of its own
            out = run.call("rms_norm", rows, weight, eps=eps)
            run.registers.write(step.output, out.view(x.shape))

        return run_step

    def _add_rms_norm(self, step: Step) -> RunStep:
        weight, eps = self._vector(step.weights), step.attrs["eps"]

        def run_step(run: Run) -> None:
            x, delta = (run.registers.read(ref) for ref in step.inputs)
            run.registers.write(step.output, run.call("add_rms_norm", x, delta, weight, eps=eps))

        return run_step

    def _rope(self, step: Step) -> RunStep:
        table, heads = self._vector(step.weights), step.attrs["heads"]

        def run_step(run: Run) -> None:
            x = run.registers.heads(step.inputs[0], heads)
            run.registers.write(step.output, run.call("rope", x, run.inputs["positions"], table).flatten(1))

        return run_step

    def _append_kv(self, step: Step) -> RunStep:
        table, heads = self._vector(step.weights), step.attrs["heads"]
        pages = self._cache.layer(step.attrs["layer"])

        def run_step(run: Run) -> None:
            k, v = (run.registers.heads(ref, heads) for ref in step.inputs)
            run.call("append_kv", k, v, *pages, run.inputs["slots"], run.inputs["positions"], table)

        return run_step

    def _tree_attention(self, step: Step) -> RunStep:
        options = dict(step.attrs)
        heads, pages = options.pop("heads"), self._cache.layer(options.pop("layer"))

        def run_step(run: Run) -> None:
            q = run.registers.heads(step.inputs[0], heads)
            run.registers.write(step.output, run.attend(q, pages, **options).flatten(1))

        return run_step

    def _elementwise(self, step: Step) -> RunStep:
        options = dict(step.attrs)
        return lambda run: run.registers.write(
            step.output, run.call(step.op, run.registers.read(step.inputs[0]), **options)
        )

    _silu_mul = _gelu_mul = _softcap = _elementwise

    def _copy(self, step: Step) -> RunStep:
        """A later step may write into the columns that are copied."""
        return lambda run: run.registers.write(step.output, run.registers.read(step.inputs[0]).clone())

    def _gather_rows(self, step: Step) -> RunStep:
        return lambda run: run.registers.write(
            step.output, run.registers.read(step.inputs[0]).index_select(0, run.inputs["logit_rows"])
        )


def _widened(weight: Tensor) -> Tensor:
    """bf16 stays; f16 is widened to f32, which loses nothing."""
    return weight if weight.dtype == torch.bfloat16 else weight.float()
