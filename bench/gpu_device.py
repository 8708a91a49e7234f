# SPDX-License-Identifier: Apache-2.0
"""Timing on a CUDA GPU: events around each call, the cache flushed before it, candidates in turns; and the GPU's measured peaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import click
import torch

from .harness import Timing, spread

Candidate = Callable[[], Any]


class NoGpu(click.ClickException):
    """There is nothing to time on: exit code 3."""

    exit_code = 3


def require_gpu(what: str) -> None:
    """Raise NoGpu where torch finds no CUDA GPU."""
    if not torch.cuda.is_available():
        raise NoGpu(f"{what}: a CUDA GPU must be here, got none (torch {torch.__version__})")


@dataclass(frozen=True)
class GpuPeaks:
    """What this GPU reaches: GB/s of copying memory, TFLOP/s of a large bf16 matmul."""

    copy_gbps: float
    bf16_tflops: float

    def percent(self, bytes: float, flops: float, seconds: float) -> float:
        """How near a call is to the nearer of its two floors."""
        return 100 * max(bytes / (self.copy_gbps * 1e9), flops / (self.bf16_tflops * 1e12)) / seconds


@lru_cache(maxsize=1)
def flush_buffer() -> torch.Tensor:
    """Twice the L2 cache: writing it leaves nothing of the operands there."""
    size = 2 * torch.cuda.get_device_properties(0).L2_cache_size
    return torch.empty(max(size, 1 << 20), dtype=torch.uint8, device="cuda")


def measure(candidates: Mapping[str, Candidate], *, rounds: int = 50) -> dict[str, Timing]:
    """Seconds of each candidate with a cold L2, in turns (A B C A B C ...); queued without waiting in between.

    A flush takes longer than a launch, so the time between two events has no gap in which the GPU waits for the host.
    """
    for call in candidates.values():
        call()
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush_buffer().zero_()
            begin.record()
            call()
            end.record()
            events[name].append((begin, end))
    torch.cuda.synchronize()
    seconds = {name: [a.elapsed_time(b) / 1e3 for a, b in pairs] for name, pairs in events.items()}
    return {name: Timing(*spread(values), len(values)) for name, values in seconds.items()}


@lru_cache(maxsize=1)
def peaks() -> GpuPeaks:
    """Copy of 1 GiB and a bf16 product of 8192^3."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    a, b = torch.randn(2, 8192, 8192, device="cuda").bfloat16()
    times = measure({"copy": lambda: target.copy_(source), "matmul": lambda: a @ b}, rounds=20)
    return GpuPeaks(2 * source.numel() / times["copy"].p20 / 1e9, 2 * 8192**3 / times["matmul"].p20 / 1e12)


def captured(call: Candidate) -> tuple[torch.cuda.CUDAGraph, Any]:
    """The call in a CUDA graph, and its results, which every replay fills anew. Raises what the call cannot do while captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph, results
