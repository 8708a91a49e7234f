# SPDX-License-Identifier: Apache-2.0
"""What the machine is: the CPU's name and features, and the cores this process may use."""

from __future__ import annotations

import os
import platform
from pathlib import Path

FEATURES = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


def _cpuinfo(*names: str) -> str:
    """The first of these fields of /proc/cpuinfo, or nothing where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    fields = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))
    }
    return next((fields[name] for name in names if name in fields), "")


def cpu_model() -> str:
    """The CPU's name, e.g. "Intel(R) Xeon(R) Processor"."""
    return _cpuinfo("model name", "Hardware", "cpu model") or platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """Features that matter to the kernels, by the kernel's names for them."""
    flags = set(_cpuinfo("flags", "Features").split())
    return [name for name in FEATURES if name in flags]


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
