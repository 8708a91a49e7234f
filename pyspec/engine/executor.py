# SPDX-License-Identifier: Apache-2.0
"""Executors of a step program: the interface, and the one that runs the specification."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from pyspec import backends, spec
from pyspec.calls import BackendCalls, Calls, HostCalls
from pyspec.engine.batch import StepBatch
from pyspec.engine.kv_pages import KVCache
from pyspec.engine.verification import Verified, verify_on_host
from pyspec.errors import UnsupportedError
from pyspec.models.program import Program, Ref, Step
from pyspec.models.quant_formats import QuantTensor, dequantize


class Weights(dict[str, Tensor | QuantTensor]):
    """Weights by canonical name, each loaded when it is first asked for; an executor takes out what it has packed.

    packed: what executors of one kind made of weights, by what they were made of: programs over the same weights share it.
    """

    def __init__(self, load: Callable[[str], Tensor | QuantTensor]) -> None:
        super().__init__()
        self._load = load
        self._others: dict[str, Callable[[str], Tensor | QuantTensor]] = {}
        self.packed: dict[Any, Tensor] = {}

    def add(self, prefix: str, load: Callable[[str], Tensor | QuantTensor]) -> None:
        """Names `prefix.NAME` are load(NAME): a draft's own weights beside those that it shares."""
        self._others[prefix] = load

    def __missing__(self, name: str) -> Tensor | QuantTensor:
        prefix, _, rest = name.partition(".")
        self[name] = weight = self._others[prefix](rest) if prefix in self._others else self._load(name)
        return weight


class Executor(Protocol):
    """Runs the program on the batch's arrays; buffers are allocated once."""

    name: str

    def run(self) -> None:
        """Compute the batch's T nodes, write their KV, and leave R rows of logits."""

    def wait(self) -> None:
        """Return when what run() started is done."""

    def logits(self) -> Tensor:
        """[R, V] f32 of the last run, where the executor has them; valid until the next."""

    def write(self, name: str, rows: Tensor) -> None:
        """Fill the program's input `name` with rows [T, columns] f32, before run()."""

    def read(self, name: str) -> Tensor:
        """[T, columns] f32: the program's output `name` of the last run, where the executor has it; valid until the next."""

    def taps(self) -> Tensor:
        """[T, taps * hidden] f32: read("taps"), of a decoder with taps."""

    def verify(self, num_logprobs: int | None) -> Verified:
        """Walk the batch's trees with the logits of the last run, and move the accepted nodes' KV to where plain decoding has it.

        num_logprobs: how many of the likeliest tokens' logprobs beside the emitted ones'; None: none of either.
        """

    def refusal(self, edits: bool, typical: bool) -> str:
        """Why requests that edit their logits (see edits.py), or with typical_p, cannot run; empty if they can."""

    def nbytes(self) -> dict[str, int]:
        """Memory held: weights and buffers, in bytes."""


class SpecExecutor:
    """The judge: every op as its plain-PyTorch specification on dequantised weights. Slow, runs anywhere."""

    name = "spec"

    def __init__(self, program: Program, weights: Weights, cache: KVCache, batch: StepBatch) -> None:
        self._program, self._cache, self._batch = program, cache, batch
        # f64, as spec.linear computes: widening them at every step would cost ten times the step.
        self._weights = weights.packed
        for name in (name for step in program.steps for name in step.weights):
            if name not in self._weights:
                weight = weights[name]
                self._weights[name] = (
                    dequantize(weight) if isinstance(weight, QuantTensor) else weight
                ).double()
        rows = {"T": batch.max_tokens, "R": batch.max_rows}
        self._buffers = {b.name: torch.zeros(rows[b.rows], b.columns) for b in program.buffers}
        self._rows = {b.name: b.rows for b in program.buffers}

    def run(self) -> None:
        for step in self._program.steps:
            getattr(self, "_" + step.op)(step)

    def logits(self) -> Tensor:
        return self._buffers[self._program.logits][: self._batch.R]

    def write(self, name: str, rows: Tensor) -> None:
        self._buffers[name][: self._batch.T] = rows

    def read(self, name: str) -> Tensor:
        return self._buffers[name][: self._batch.T]

    def taps(self) -> Tensor:
        return self.read("taps")

    def wait(self) -> None:
        """run() returns when it is done."""

    def verify(self, num_logprobs: int | None) -> Verified:
        return verify_on_host(self._batch, self.logits(), self._commit, num_logprobs)

    def refusal(self, edits: bool, typical: bool) -> str:
        return ""

    def _commit(self, path: Tensor, path_len: Tensor) -> None:
        b = self._batch
        for i in range(self._cache.k.size(0)):
            spec.commit_kv.reference(
                *self._cache.layer(i), b.page_table[: b.B], b.kv_len[: b.B], path, path_len, *self._cache.scales(i),
                kv_layout="paged",
            )  # fmt: skip

    def nbytes(self) -> dict[str, int]:
        size = lambda tensors: sum(t.nbytes for t in tensors)
        return {"weights": size(self._weights.values()), "buffers": size(self._buffers.values())}

    def _view(self, ref: Ref) -> Tensor:
        count = self._batch.T if self._rows[ref.buffer] == "T" else self._batch.R
        return self._buffers[ref.buffer][:count, ref.start : ref.start + ref.size]

    def _heads(self, ref: Ref, heads: int) -> Tensor:
        return self._view(ref).unflatten(1, (heads, ref.size // heads))

    def _embedding(self, step: Step) -> None:
        ids = self._batch.tokens[: self._batch.T].long()
        self._view(step.output).copy_(self._weights[step.weights[0]][ids] * step.attrs["scale"])

    def _rms_norm(self, step: Step) -> None:
        heads = step.attrs.get("heads", 1)
        x = self._heads(step.inputs[0], heads)
        out = spec.rms_norm.reference(x, self._weights[step.weights[0]], eps=step.attrs["eps"])
        self._heads(step.output, heads).copy_(out)

    def _add_rms_norm(self, step: Step) -> None:
        x, delta = (self._view(ref) for ref in step.inputs)
        out = spec.add_rms_norm.reference(x, delta, self._weights[step.weights[0]], eps=step.attrs["eps"])
        self._view(step.output).copy_(out)

    def _linear(self, step: Step) -> None:
        parts = step.attrs["parts"]
        x, out, column = self._view(step.inputs[0]), self._view(step.output), 0
        for i in range(parts):
            weight = self._weights[step.weights[i]]
            bias = self._weights[step.weights[parts + i]] if len(step.weights) > parts else None
            out[:, column : column + weight.size(0)] = spec.linear.reference(x, weight, bias)
            column += weight.size(0)

    def _rope(self, step: Step) -> None:
        x = self._heads(step.inputs[0], step.attrs["heads"])
        positions = self._batch.positions[: self._batch.T]
        self._heads(step.output, step.attrs["heads"]).copy_(
            spec.rope.reference(x, positions, self._weights[step.weights[0]])
        )

    def _append_kv(self, step: Step) -> None:
        b, heads = self._batch, step.attrs["heads"]
        k, v = (self._heads(ref, heads) for ref in step.inputs)
        layer = step.attrs["layer"]
        spec.append_kv.reference(
            k, v, *self._cache.layer(layer), b.slots[: b.T], b.positions[: b.T], self._weights[step.weights[0]],
            *self._cache.scales(layer), kv_layout="paged",
        )  # fmt: skip

    def _tree_attention(self, step: Step) -> None:
        b, attrs = self._batch, dict(step.attrs)
        heads, layer = attrs.pop("heads"), attrs.pop("layer")
        q = self._heads(step.inputs[0], heads)
        out, _ = spec.tree_attention.reference(
            q, *self._cache.layer(layer), b.page_table[: b.B], b.kv_len[: b.B], b.cu_t[: b.B + 1],
            b.parents[: b.T], *self._cache.scales(layer), kv_layout="paged", **attrs,
        )  # fmt: skip
        self._heads(step.output, heads).copy_(out)

    def _silu_mul(self, step: Step) -> None:
        self._view(step.output).copy_(spec.silu_mul.reference(self._view(step.inputs[0])))

    def _gelu_mul(self, step: Step) -> None:
        self._view(step.output).copy_(spec.gelu_mul.reference(self._view(step.inputs[0])))

    def _softcap(self, step: Step) -> None:
        self._view(step.output).copy_(
            spec.softcap.reference(self._view(step.inputs[0]), cap=step.attrs["cap"])
        )

    def _copy(self, step: Step) -> None:
        self._view(step.output).copy_(self._view(step.inputs[0]))

    def _gather_rows(self, step: Step) -> None:
        rows = self._batch.logit_rows[: self._batch.R].long()
        self._view(step.output).copy_(self._view(step.inputs[0])[rows])


CPU_EXECUTORS = ("compiled", "spec")
GPU_EXECUTORS = ("cuda", "triton", "cuda-emulated", "triton-emulated")


def resolve_executor(name: str) -> str:
    """The executor that `name` stands for: "auto" is a GPU's if there is one and its kernels are, else the CPU's.

    UnsupportedError if the machine lacks what `name` needs.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda" if backends.native is not None and backends.native.with_cuda else "triton"
        return "spec" if backends.native is None else "compiled"
    if name not in CPU_EXECUTORS + GPU_EXECUTORS:
        raise ValueError(
            f"LLM: executor must be auto|{'|'.join(CPU_EXECUTORS + GPU_EXECUTORS)}, got {name!r}"
        )
    if name in ("cuda", "triton") and not torch.cuda.is_available():
        raise UnsupportedError(f"LLM: executor {name!r} cannot run: torch finds no CUDA GPU on this machine")
    return name


def check_kv_dtype(executor: str, dtype: torch.dtype) -> None:
    """UnsupportedError if a resolved executor has no cache of this dtype."""
    if dtype == torch.int8 and executor in GPU_EXECUTORS:
        raise UnsupportedError(
            f"LLM: executor {executor!r} cannot run: kv_dtype must be bf16|f16|f32 on GPUs, got 'int8'"
        )


def device_of(executor: str) -> torch.device:
    """Where the cache of a resolved executor lies."""
    return torch.device("cuda" if executor in ("cuda", "triton") else "cpu")


def calls_of(executor: str) -> Calls:
    """Ops as a resolved executor runs them."""
    return BackendCalls(executor, device_of(executor)) if executor in GPU_EXECUTORS else HostCalls()


def spare_pages(executor: str, batch: StepBatch) -> int:
    """Pages of the cache behind those of requests that a resolved executor needs for itself."""
    from pyspec.engine.padded_batch import padding_pages

    return padding_pages(batch.max_tokens, batch.page_size) if executor in GPU_EXECUTORS else 0


def make_executor(
    name: str,
    program: Program,
    weights: Weights,
    cache: KVCache,
    batch: StepBatch,
    release_pages: Callable[[], None],
) -> Executor:
    """A resolved executor, which reads `batch` and owns the spare pages of `cache`.

    release_pages() is called whenever weights have been copied and their source may leave memory.
    """
    if name == "spec":
        return SpecExecutor(program, weights, cache, batch)
    if name in GPU_EXECUTORS:
        from pyspec.engine.gpu import GpuExecutor

        return GpuExecutor(name, program, weights, cache, batch, release_pages)
    from pyspec.engine.compiled import CompiledExecutor

    return CompiledExecutor(program, weights, cache, batch, release_pages)
