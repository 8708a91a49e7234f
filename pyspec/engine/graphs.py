# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs of a step: captured once per size, then replayed; and the sizes that steps are padded to."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch


def buckets(most: int) -> tuple[int, ...]:
    """Sizes that steps are padded to: 1, 2, 3, 4, 6, 8, 12, 16, 24, ... up to the first that holds `most`.

    Each is at most half as large again as the one before: a third of a step at most is padding.
    """
    sizes, power = [1], 2
    while sizes[-1] < most:
        sizes += [power, power + power // 2]
        power *= 2
    return tuple(size for i, size in enumerate(sizes) if i == 0 or sizes[i - 1] < most)


def bucket(count: int, sizes: tuple[int, ...]) -> int:
    """The smallest size that holds `count`."""
    return next(size for size in sizes if size >= count)


class Graphs:
    """Runs functions that read and write tensors at fixed addresses: on CUDA captured under their key at the first run and
    replayed from then on, elsewhere called.

    A function must not wait for the device, and its results are overwritten when it runs again. All graphs share one pool of
    memory: nothing that one of them leaves there but its results may be read later.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._captured: dict[Hashable, tuple[torch.cuda.CUDAGraph, Any]] = {}
        self._pool = torch.cuda.graph_pool_handle() if self._on_cuda else None

    def run(
        self, key: Hashable, body: Callable[[], Any], blank: Callable[[], None], fill: Callable[[], None]
    ) -> Any:
        """Results of `body` on what `fill` sends to the device.

        Before a capture, `blank` sends inputs on which running the body once (kernels are loaded and compiled then) changes
        nothing that anyone reads.
        """
        if not self._on_cuda:
            fill()
            return body()
        if key not in self._captured:
            blank()
            self._captured[key] = self._capture(body)
        fill()
        graph, results = self._captured[key]
        graph.replay()
        return results

    def _capture(self, body: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            body()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            results = body()
        return graph, results
