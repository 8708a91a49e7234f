# SPDX-License-Identifier: Apache-2.0
"""What `pyspec tune` has measured: for a GPU, a kernel and sizes the fields of its Config that are faster than pick_config's own.

Only fields that leave every sum's order as it is may differ: rows of x in a tile, warps, and stages of the pipeline. The table is
tuned.json, {GPU: {kernel: {"rows, other arguments of pick_config": fields}}}; rows are rounded up to a power of two.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton

FILE = Path(__file__).with_name("tuned.json")
FIELDS = ("block_m", "num_warps", "num_stages")
Fields = dict[str, int]

_trying: Fields = {}  # of every kernel, while `pyspec tune` measures


def tunable(kernel: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """pick_config(rows, ...) whose Config takes over what was measured for `kernel` on the GPU in use."""

    def decorate(pick: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(pick)
        def picked(rows: int, *sizes: Any) -> Any:
            config, on_this_gpu = pick(rows, *sizes), table().get(gpu(), {})
            found = _trying or on_this_gpu.get(kernel, {}).get(key(rows, *sizes), {})
            return replace(config, **found) if found else config

        return picked

    return decorate


def key(rows: int, *sizes: Any) -> str:
    """Under which name a call's measurement is kept."""
    return ", ".join(
        str(size).removeprefix("torch.") for size in (triton.next_power_of_2(max(rows, 1)), *sizes)
    )


@functools.lru_cache(maxsize=1)
def table() -> dict[str, dict[str, dict[str, Fields]]]:
    """The measured fields; empty without the file."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


@functools.lru_cache(maxsize=1)
def gpu() -> str:
    """The name of the GPU, "" without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


@contextlib.contextmanager
def trying(fields: Fields) -> Iterator[None]:
    """Every tunable kernel launches with these fields meanwhile."""
    global _trying
    before, _trying = _trying, fields
    try:
        yield
    finally:
        _trying = before
