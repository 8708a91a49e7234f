# SPDX-License-Identifier: Apache-2.0
"""The arrays of a step on a device: filled on the host in one piece of memory, sent in one copy."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from math import prod

import torch
from numpy.typing import NDArray
from torch import Tensor

from pyspec.calls import ALIGNMENT

Shape = tuple[int, ...]


class Staging:
    """Named arrays at fixed addresses on a device. `fill()` gives the host's views, `send()` starts the copy.

    On CUDA the host memory is pinned and there are two pieces, filled in turns: one step's copy may still be under way
    while the next step is laid out. A piece is waited for only if its copy of two steps ago is not done.
    """

    def __init__(self, layout: Mapping[str, tuple[Shape, torch.dtype]], device: torch.device) -> None:
        offsets, end = {}, 0
        for name, (shape, dtype) in layout.items():
            offsets[name] = end
            end += -(-prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        on_cuda = device.type == "cuda"

        def views(memory: Tensor) -> dict[str, Tensor]:
            return {
                name: memory[offsets[name] : offsets[name] + prod(shape) * dtype.itemsize]
                .view(dtype)
                .view(shape)
                for name, (shape, dtype) in layout.items()
            }

        self._memory = torch.zeros(end, dtype=torch.uint8, device=device)
        self.device: dict[str, Tensor] = views(self._memory)
        pieces = [torch.zeros(end, dtype=torch.uint8, pin_memory=on_cuda) for _ in range(2 if on_cuda else 1)]
        sent = [torch.cuda.Event() if on_cuda else None for _ in pieces]
        numpy = [{name: view.numpy() for name, view in views(piece).items()} for piece in pieces]
        self._turns = cycle(zip(pieces, sent, numpy, strict=True))
        self._piece, self._sent, self._arrays = next(self._turns)

    def fill(self) -> dict[str, NDArray]:
        """Arrays on the host to be filled now; they hold what an earlier step left there."""
        self._piece, self._sent, self._arrays = next(self._turns)
        if self._sent is not None:
            self._sent.synchronize()
        return self._arrays

    def send(self) -> None:
        """Copy the arrays filled last to the device, behind what its stream does."""
        self._memory.copy_(self._piece, non_blocking=True)
        if self._sent is not None:
            self._sent.record()

    @property
    def nbytes(self) -> int:
        return self._memory.nbytes
