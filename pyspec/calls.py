# SPDX-License-Identifier: Apache-2.0
"""How engines call ops: on the host through pyspec.ops, or unchecked on one backend, with small arrays sent and results fetched at once.

What goes to a device goes through pinned memory in one copy that nobody waits for; what comes back is waited for once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pyspec import backends, ops
from pyspec.contract import OPS
from pyspec.errors import UnsupportedError

ALIGNMENT = 256  # bytes: of CUDA's own allocations, so that a kernel may read any array in vectors


def send(arrays: Sequence[Any], device: torch.device) -> list[Any]:
    """Tensors on `device`: those on the host in one copy behind what its stream does; others, and None, as they are."""
    sent, places, end = list(arrays), [], 0
    for i, array in enumerate(arrays):
        if isinstance(array, Tensor) and array.device.type == "cpu" != device.type:
            places.append((i, end))
            end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    if not places:
        return sent
    piece = torch.empty(end, dtype=torch.uint8, pin_memory=True)
    memory = torch.empty(end, dtype=torch.uint8, device=device)
    for i, start in places:
        array = arrays[i]
        host, sent[i] = (
            whole[start : start + array.nbytes].view(array.dtype).view(array.shape)
            for whole in (piece, memory)
        )
        host.copy_(array)
    memory.copy_(piece, non_blocking=True)
    return sent


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """rows[index] where the rows are; index int [n] on the host."""
    if rows.device.type == "cpu":  # by numpy: torch takes ten times as long for few rows
        return torch.from_numpy(rows.numpy()[index.numpy()])
    return rows.index_select(0, send([index], rows.device)[0])


class Calls(Protocol):
    """Ops as one executor runs them.

    device: of the tensors; packs: whether linear layers take weights in the CPU's packed layout, or rows.
    """

    device: torch.device
    packs: bool

    def __call__(self, op: str, *args: Any, **options: Any) -> Any:
        """The results of an op, where its tensors are."""

    def fetch(self, op: str, *args: Any, **options: Any) -> tuple[Tensor, ...]:
        """The results on the host, valid until the next call of fetch; the arguments may lie there too."""

    def ask(self, op: str, *args: Any, **options: Any) -> Any:
        """The shapes of what a call would give; UnsupportedError with the reason if it cannot run. Nothing is computed."""

    def lacks(self, op: str) -> str:
        """Why there is no such op, or ""."""


class HostCalls:
    """Ops on the CPU."""

    device = torch.device("cpu")
    packs = True

    def __call__(self, op: str, *args: Any, **options: Any) -> Any:
        return getattr(ops, op)(*args, **options)

    def fetch(self, op: str, *args: Any, **options: Any) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = self(op, *args, **options)
        return results

    def ask(self, op: str, *args: Any, **options: Any) -> Any:
        return OPS[op].fake(*args, **options)

    def lacks(self, op: str) -> str:
        return ""


class BackendCalls:
    """Ops on one backend, their values unchecked: the engine made them."""

    packs = False

    def __init__(self, backend: str, device: torch.device) -> None:
        self.device = device
        self._backend = backend
        self._kernels: dict[str, Callable[..., Any]] = {}
        self._fetched: dict[Any, tuple[Tensor, ...]] = {}  # pinned, where results of these shapes come back

    def __call__(self, op: str, *args: Any, **options: Any) -> Any:
        if op not in self._kernels:
            self._kernels[op] = backends.kernel(op, self._backend)
        return self._kernels[op](*backends.complete(op, args), **options)

    def fetch(self, op: str, *args: Any, **options: Any) -> tuple[Tensor, ...]:
        return self.read_back(self(op, *send(args, self.device), **options))

    def read_back(self, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The results on the host, with one wait; valid until results of the same shapes are read."""
        if self.device.type == "cpu":
            return results
        key = tuple((out.shape, out.dtype) for out in results)
        if key not in self._fetched:
            self._fetched[key] = tuple(
                torch.empty(out.shape, dtype=out.dtype, pin_memory=True) for out in results
            )
        for host, out in zip(self._fetched[key], results, strict=True):
            host.copy_(out, non_blocking=True)
        self.wait()
        return self._fetched[key]

    def wait(self) -> None:
        """Return when what was started is done."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def ask(self, op: str, *args: Any, **options: Any) -> Any:
        spec, args = OPS[op], backends.complete(op, args)
        if reason := backends.why_not(self._backend, spec, spec.bind(args, options), args, options):
            raise UnsupportedError(f"{op}: {reason}")
        return spec.fake(*args, **options)

    def lacks(self, op: str) -> str:
        return backends.missing(self._backend, op)
