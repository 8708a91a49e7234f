# SPDX-License-Identifier: Apache-2.0
"""Tensors of a call in guarded memory: what lies past their ends cannot be touched, nor inputs be written."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch
from torch import Tensor


class GuardedTensors:
    """Copies of named tensors in guarded memory: what a tensor spans there is what a kernel may touch.

    Made where torch's allocations are guarded. Views of one storage stay such views if their bytes overlap.
    """

    def __init__(self, machine: ctypes.CDLL, tensors: dict[str, Tensor], mutated: set[str]) -> None:
        self.machine = machine
        self.spans: list[_Span] = []
        for name, tensor in sorted(tensors.items(), key=lambda item: _bytes_of(item[1])):
            begin, end = _bytes_of(tensor)
            if self.spans and begin < self.spans[-1].end:
                span = self.spans[-1]
                span.end = max(span.end, end)
                span.names.append(name)
                span.mutated |= name in mutated
            else:
                self.spans.append(_Span(begin, end, [name], name in mutated, tensor.untyped_storage()))
        for span in self.spans:
            address = span.guarded.data_ptr()
            machine.emulator_name_buffer(address, ", ".join(span.names).encode())
            if not span.mutated:
                machine.emulator_protect(address)

    def of(self, tensor: Tensor) -> Tensor:
        """The copy of a tensor, with its strides."""
        begin, end = _bytes_of(tensor)
        return next(span for span in self.spans if span.begin <= begin and end <= span.end).view_like(tensor)

    def copy_back(self) -> None:
        """What was written into tensors that may be, goes to the originals."""
        for span in self.spans:
            if span.mutated:
                span.original.copy_(span.guarded)


@dataclass
class _Span:
    """Bytes of one storage, and their copy in guarded memory."""

    begin: int  # addresses
    end: int
    names: list[str]
    mutated: bool
    storage: torch.UntypedStorage

    @functools.cached_property
    def original(self) -> Tensor:
        whole = torch.empty(0, dtype=torch.uint8).set_(self.storage)
        first = self.begin - self.storage.data_ptr()
        return whole[first : first + self.end - self.begin]

    @functools.cached_property
    def guarded(self) -> Tensor:
        """Begins at the same remainder of 16 bytes as the original: kernels choose variants by alignment."""
        shift = self.begin % 16
        copy = torch.empty(shift + self.end - self.begin, dtype=torch.uint8)[shift:]
        return copy.copy_(self.original)

    def view_like(self, tensor: Tensor) -> Tensor:
        offset = self.guarded.storage_offset() + tensor.data_ptr() - self.begin
        typed = torch.empty(0, dtype=tensor.dtype)
        assert offset % tensor.itemsize == 0
        storage = self.guarded.untyped_storage()
        return typed.set_(storage, offset // tensor.itemsize, tensor.shape, tensor.stride())


def _bytes_of(tensor: Tensor) -> tuple[int, int]:
    """Addresses of a tensor's first byte and behind its last."""
    begin = tensor.data_ptr()
    if tensor.numel() == 0:
        return begin, begin
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (last + 1) * tensor.itemsize
