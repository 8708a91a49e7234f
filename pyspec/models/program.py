# SPDX-License-Identifier: Apache-2.0
"""The step program: a model as a flat list of ops over named buffers, run by every executor.

One step computes T tokens (nodes of all requests' trees) against the KV cache and gives R rows of logits. A buffer is a register:
later steps of the program may overwrite it. The batch's own arrays (`StepBatch`) and the program's inputs are filled before it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Buffer:
    """f32 rows [T, columns], or [R, columns] when `rows` is "R"."""

    name: str
    columns: int
    rows: str = "T"


@dataclass(frozen=True)
class Ref:
    """Columns [start, start + size) of a buffer."""

    buffer: str
    start: int
    size: int


@dataclass(frozen=True)
class Step:
    """One op: inputs and output by reference, weights by canonical name, the rest as attributes."""

    op: str
    inputs: tuple[Ref, ...]
    output: Ref
    weights: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """A traced model: buffers, then the steps in order; `logits` names the buffer of the result.

    inputs: buffers of T rows that are filled from outside before each run; outputs: buffers of T rows that can be read after it.
    """

    buffers: tuple[Buffer, ...]
    steps: tuple[Step, ...]
    logits: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def columns(self, buffer: str) -> int:
        """Columns of a buffer."""
        return next(b.columns for b in self.buffers if b.name == buffer)


class Tracer:
    """Builds a program: a model definition calls one method per op."""

    def __init__(self) -> None:
        self._buffers: dict[str, Buffer] = {}
        self._steps: list[Step] = []

    def buffer(self, name: str, columns: int, rows: str = "T") -> Ref:
        known = self._buffers.setdefault(name, Buffer(name, columns, rows))
        assert (known.columns, known.rows) == (columns, rows), f"buffer {name} traced with two shapes"
        return Ref(name, 0, columns)

    def op(self, op: str, inputs: tuple[Ref, ...], output: Ref, *weights: str, **attrs: Any) -> Ref:
        self._steps.append(Step(op, inputs, output, weights, attrs))
        return output

    def program(self, logits: Ref, inputs: Sequence[Ref] = (), outputs: Sequence[Ref] = ()) -> Program:
        """The program so far. `inputs` and `outputs` are whole buffers of T rows."""
        names = [tuple(ref.buffer for ref in refs) for refs in (inputs, outputs)]
        return Program(tuple(self._buffers.values()), tuple(self._steps), logits.buffer, *names)


def columns(ref: Ref, start: int, size: int) -> Ref:
    """A part of `ref`."""
    assert start >= 0
    assert start + size <= ref.size
    return Ref(ref.buffer, ref.start + start, size)
