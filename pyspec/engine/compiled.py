# SPDX-License-Identifier: Apache-2.0
"""The compiled CPU executor: packs the weights once, lowers the program to launches, runs a step in one call."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from pyspec import backends, ops
from pyspec.engine.batch import StepBatch
from pyspec.engine.compiled_walk import CompiledWalk
from pyspec.engine.executor import Weights
from pyspec.engine.huge_pages import Arena
from pyspec.engine.kv_pages import KVCache
from pyspec.engine.verification import Verified, verify_on_host
from pyspec.errors import UnsupportedError
from pyspec.models.program import Program, Ref, Step
from pyspec.models.quant_formats import QuantTensor

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 4}  # enum DType
_FORMATS = ("q4_0", "q4_1", "q5_0", "q8_0", "q4_k", "q6_k")  # enum QuantFormat
MAX_HEAD_DIM = 256  # of tree_attention's kernel
# Between rows of logits: a vocabulary of many times 1024 would put one column of all rows into one set of a cache (1.85 ms for
# 32 rows of 49152, 1.54 with it).
ROW_PAD = 16
FUSED = ("rms_norm", "add_rms_norm", "silu_mul", "gelu_mul")  # their kernels can quantise what they make


class CompiledExecutor:
    """One compiled call per step. This object keeps every tensor alive whose address the launches hold."""

    def __init__(
        self,
        program: Program,
        weights: Weights,
        cache: KVCache,
        batch: StepBatch,
        release_pages: Callable[[], None],
    ) -> None:
        native = backends.native
        self.name = f"cpu/{native.cpu_isa()}"
        self._native, self._program, self._batch, self._cache = native, program, batch, cache
        self._source, self._release_pages = weights, release_pages
        self._held, self._arena = weights.packed, Arena()
        rows = {"T": batch.max_tokens, "R": batch.max_rows}
        self._buffers = {
            b.name: torch.zeros(rows[b.rows], b.columns + ROW_PAD * (b.name == program.logits))[
                :, : b.columns
            ]
            for b in program.buffers
        }
        # The first rows of buffers that are read at every step
        self._read: dict[tuple[str, int], Tensor] = {}
        self._of_logits = {b.name: b.rows == "R" for b in program.buffers}
        address = lambda name: getattr(batch, name).data_ptr()
        inputs = ("tokens", "positions", "parents", "cu_t", "kv_len", "page_table", "logit_rows", "slots")
        arrays = native.StepArrays(
            table_width=batch.page_table.size(1), **{name: address(name) for name in inputs}
        )
        layers, pages, page_size, kv_heads, head_dim = cache.k.shape
        if head_dim % 16 or head_dim > MAX_HEAD_DIM:
            raise UnsupportedError(
                f"LLM: head_dim must be a multiple of 16 up to {MAX_HEAD_DIM} for the compiled executor, "
                f"got {head_dim}; executor='spec' runs it"
            )
        scales = {
            name: 0 if tensor is None else tensor.data_ptr()
            for name, tensor in (("k_scale", cache.k_scale), ("v_scale", cache.v_scale))
        }
        shape = native.CacheShape(
            k=cache.k.data_ptr(), v=cache.v.data_ptr(), **scales, layers=layers, pages=pages, page_size=page_size,
            kv_heads=kv_heads, head_dim=head_dim, dtype=_DTYPES[cache.k.dtype], tiled=page_size % 16 == 0,
        )  # fmt: skip
        heads = next(step.attrs["heads"] for step in program.steps if step.op == "tree_attention")
        self._executor = native.StepExecutor(arrays, shape, batch.max_tokens, heads)
        logits = self._buffers[program.logits]
        self._walk = CompiledWalk(native, self._executor, batch, logits)
        # Whose int8 rows lie in the workspace at this point of the program.
        self._quantized: Ref | None = None
        for i, step in enumerate(program.steps):
            self._fused = for_products_alone(program, i, self._is_quantised)
            getattr(self, "_" + step.op)(step)
            if self._fused:
                self._quantized = step.output
            elif self._quantized is not None and self._quantized.buffer == step.output.buffer:
                self._quantized = None
        del self._source

    def run(self) -> None:
        self._executor.run(self._batch.T, self._batch.R, self._batch.B)

    def logits(self) -> Tensor:
        return self._buffers[self._program.logits][: self._batch.R]

    def write(self, name: str, rows: Tensor) -> None:
        self.read(name).numpy()[:] = rows.numpy()  # torch takes ten times as long for one row

    def read(self, name: str) -> Tensor:
        key = name, self._batch.T
        if key not in self._read:
            self._read[key] = self._buffers[name][: self._batch.T]
        return self._read[key]

    def taps(self) -> Tensor:
        return self.read("taps")

    def wait(self) -> None:
        """run() returns when it is done."""

    def verify(self, num_logprobs: int | None) -> Verified:
        if self._batch.drawn.verifier.walk:
            return verify_on_host(self._batch, self.logits(), self._commit, num_logprobs)
        return self._walk.run(num_logprobs)

    def refusal(self, edits: bool, typical: bool) -> str:
        return ""

    def _commit(self, path: Tensor, path_len: Tensor) -> None:
        self._executor.commit(path.data_ptr(), path_len.data_ptr(), *path.shape)

    def nbytes(self) -> dict[str, int]:
        buffers = sum(t.nbytes for t in self._buffers.values()) + self._executor.workspace_bytes()
        return {"weights": sum(t.nbytes for t in self._held.values()), "buffers": buffers}

    def _is_quantised(self, name: str) -> bool:
        return isinstance(self._source[name], QuantTensor)

    def _rows(self, ref: Ref) -> Any:
        buffer = self._buffers[ref.buffer]
        return self._native.Rows(
            buffer.data_ptr() + 4 * ref.start, ref.size, buffer.stride(0), self._of_logits[ref.buffer]
        )

    def _hold(self, key: Any, tensor: Tensor) -> int:
        return self._held.setdefault(key, tensor).data_ptr()

    def _f32(self, *names: str) -> int:
        """Address of one f32 vector, several joined, or 0 for none."""
        if not names:
            return 0
        if names not in self._held:
            joined = torch.cat([self._tensor(name).float().flatten() for name in names])
            self._held[names] = joined
        return self._held[names].data_ptr()

    def _tensor(self, name: str) -> Tensor:
        weight = self._source[name]
        assert isinstance(weight, Tensor)  # norms, biases and tables: the loaders check ranks and types
        return weight

    def _packed(self, names: tuple[str, ...]) -> tuple[int, int, bool]:
        """(address, dtype or format, quantised) of one packed weight that holds the rows of `names` in order."""
        parts = [self._source[name] for name in names]
        first = parts[0]
        if names not in self._held:
            self._held[names] = self._arena.keep(_pack(parts))
            self._release_pages()
            self._native.trim_heap()  # sources and joined rows leave holes between the packed weights
        if isinstance(first, QuantTensor):
            return self._held[names].data_ptr(), _FORMATS.index(first.format), True
        return self._held[names].data_ptr(), _DTYPES[_compute_dtype(first)], False

    def _embedding(self, step: Step) -> None:
        (name,), scale = step.weights, step.attrs["scale"]
        weight = self._source[name]
        if isinstance(weight, QuantTensor):  # one packed copy serves the tied LM head too
            address, code, _ = self._packed((name,))
            self._executor.quant_embedding(address, code, self._rows(step.output), scale)
        else:
            address = self._hold(("rows", name), weight.contiguous())
            self._executor.embedding(address, _DTYPES[weight.dtype], self._rows(step.output), scale)

    def _linear(self, step: Step) -> None:
        """One launch per run of parts that can share a packed weight; quantised rows of x are made once."""
        parts = step.attrs["parts"]
        (x,), column = step.inputs, 0
        for _, run in groupby(range(parts), lambda i: _kind(self._source[step.weights[i]])):
            indices = list(run)
            names = tuple(step.weights[i] for i in indices)
            biases = tuple(step.weights[parts + i] for i in indices) if len(step.weights) > parts else ()
            size = sum(self._source[name].shape[0] for name in names)
            out = self._rows(Ref(step.output.buffer, step.output.start + column, size))
            column += size
            address, code, quantised = self._packed(names)
            if not quantised:
                self._executor.linear(self._rows(x), address, code, self._f32(*biases), out)
                continue
            if self._quantized != x:
                self._executor.quantize(self._rows(x))
                self._quantized = x
            self._executor.quant_linear(address, code, self._f32(*biases), self._rows(x), out)
        for name in step.weights:  # packed: the source may go (a tied embedding was read before its head)
            self._source.pop(name, None)

    def _rms_norm(self, step: Step) -> None:
        x, out, heads = self._rows(step.inputs[0]), self._rows(step.output), step.attrs.get("heads", 1)
        self._executor.rms_norm(x, self._f32(*step.weights), out, heads, step.attrs["eps"], self._fused)

    def _add_rms_norm(self, step: Step) -> None:
        x, delta = (self._rows(ref) for ref in step.inputs)
        self._executor.add_rms_norm(
            x, delta, self._f32(*step.weights), self._rows(step.output), step.attrs["eps"], self._fused
        )

    def _rope(self, step: Step) -> None:
        table, rotary = self._table(step)
        self._executor.rope(self._rows(step.inputs[0]), table, step.attrs["heads"], rotary)

    def _append_kv(self, step: Step) -> None:
        table, rotary = self._table(step)
        k, v = (self._rows(ref) for ref in step.inputs)
        self._executor.append_kv(k, v, table, step.attrs["layer"], rotary)

    def _table(self, step: Step) -> tuple[int, int]:
        (name,) = step.weights
        table = self._tensor(name)
        return self._hold(name, table.contiguous()), table.size(1)

    def _tree_attention(self, step: Step) -> None:
        q, out, a = self._rows(step.inputs[0]), self._rows(step.output), step.attrs
        self._executor.tree_attention(q, out, a["layer"], a["scale"], a["softcap"], a["window"])

    def _silu_mul(self, step: Step) -> None:
        self._executor.gated(self._rows(step.inputs[0]), self._rows(step.output), False, self._fused)

    def _gelu_mul(self, step: Step) -> None:
        self._executor.gated(self._rows(step.inputs[0]), self._rows(step.output), True, self._fused)

    def _gather_rows(self, step: Step) -> None:
        self._executor.gather_rows(self._rows(step.inputs[0]), self._rows(step.output))

    def _copy(self, step: Step) -> None:
        self._executor.copy(self._rows(step.inputs[0]), self._rows(step.output))

    def _softcap(self, step: Step) -> None:
        self._executor.softcap(self._rows(step.output), step.attrs["cap"])


def for_products_alone(program: Program, i: int, is_quantised: Callable[[str], bool]) -> bool:
    """Whether step i makes rows that only quantised products read, the first of them before any other rows are quantised.

    Then its launch quantises them and writes no f32 rows. is_quantised: of a weight, by name.
    """
    step = program.steps[i]
    if step.op not in FUSED or step.attrs.get("heads", 1) > 1 or step.output.buffer in program.outputs:
        return False
    read = False
    for later in program.steps[i + 1 :]:
        if any(ref.buffer == step.output.buffer for ref in later.inputs):
            if later.op != "linear" or later.inputs != (step.output,):
                return False
            if not all(is_quantised(name) for name in later.weights[: later.attrs["parts"]]):
                return False
            read = True
        elif not read and later.op != "copy":
            return False
        if later.output.buffer == step.output.buffer:
            break
    return read


def _compute_dtype(weight: Tensor) -> torch.dtype:
    """bf16 stays; f16 is widened to f32, which loses nothing."""
    return torch.bfloat16 if weight.dtype == torch.bfloat16 else torch.float32


def _pack(parts: list[Tensor | QuantTensor]) -> Tensor:
    """The packed form of the rows of all parts, one below the other."""
    first = parts[0]
    rows = [part.data if isinstance(part, QuantTensor) else part.to(_compute_dtype(part)) for part in parts]
    joined = torch.cat(rows) if len(rows) > 1 else rows[0]
    if isinstance(first, QuantTensor):
        return ops.pack_quant_weight(joined, format=first.format)
    return ops.pack_weight(joined)


def _kind(weight: Tensor | QuantTensor) -> Any:
    """Parts of one kind that follow each other share a packed weight."""
    return weight.format if isinstance(weight, QuantTensor) else _compute_dtype(weight)
