# SPDX-License-Identifier: Apache-2.0
"""Zeroed memory in huge pages, for what every step reads from end to end: weights and KV.

With pages of 4 KB a processor waits for their addresses: a loop that reads reached half the speed. The system gives such memory when it is first
touched, so pages of the cache that no request has used cost neither time nor memory. Where there are no huge pages the memory is ordinary.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from typing import Any

import torch
from torch import Tensor

HUGE = 1 << 21  # bytes of a huge page of x86 and, with pages of 4 KB, of Arm
CHUNK = 16 * HUGE
ALIGNMENT = 64  # of packed weights
# Shared memory, which Python maps otherwise, comes in small pages. Windows knows neither.
_PRIVATE: Any = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros on the CPU, aligned to a huge page."""
    size = math.prod(shape)
    if size == 0:
        return torch.zeros(shape, dtype=dtype)
    memory = mmap.mmap(-1, size * dtype.itemsize + HUGE, **_PRIVATE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    start = -torch.frombuffer(memory, dtype=torch.uint8, count=1).data_ptr() % HUGE
    return torch.frombuffer(memory, dtype=dtype, count=size, offset=start).view(shape)


class Arena:
    """Tensors one behind another in huge pages, for as long as any of them lives."""

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)

    def keep(self, tensor: Tensor) -> Tensor:
        """A copy of a contiguous tensor on the CPU, aligned to 64 bytes."""
        size = -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        if size > self._free.numel():
            self._free = zeros((max(size, CHUNK),), torch.uint8)
        room, self._free = self._free[: tensor.nbytes], self._free[size:]
        return room.view(tensor.dtype).view(tensor.shape).copy_(tensor)
