# SPDX-License-Identifier: Apache-2.0
"""`pyspec info`: the machine, what is compiled, what would run, and what is missing and why."""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
from typing import Any

import click

from pyspec import machine


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(as_json: bool) -> None:
    """Say what this machine has, what is compiled, and what is missing and why."""
    facts = collect()
    print(json.dumps(facts) if as_json else describe(facts))


def collect() -> dict[str, Any]:
    """Everything that `info` prints, as plain JSON types."""
    import torch

    from pyspec import __version__, backends, contract

    native = backends.native
    kernels = {
        name: [
            *(
                backend
                for backend, key in (("cpu", "CPU"), ("cuda", "CUDA"))
                if _compiled(backends, name, key)
            ),
            *([] if backends.missing("triton", name) else ["triton"]),
        ]
        for name in sorted(contract.OPS)
    }
    return {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": {"version": torch.__version__, "cuda": torch.version.cuda, "gpu": _gpu(torch)},
        "cpu": {"model": machine.cpu_model(), "cores": machine.cores(), "features": machine.cpu_features()},
        "isa": native.cpu_isa() if native else None,
        "threads": native.num_threads() if native else torch.get_num_threads(),
        "backends": [name for name in ("cuda", "cpu", "spec") if name == "spec" or any(name in k for k in kernels.values())],
        "ops": kernels,
        "triton_ops": [name for name in kernels if not backends.missing("triton", name)],
        "missing": _missing(backends, kernels),
        "models": _models(),
    }  # fmt: skip


def _compiled(backends: Any, op: str, key: str) -> bool:
    return backends.native is not None and backends._has_kernel(op, key)


def _gpu(torch: Any) -> str | None:
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _missing(backends: Any, kernels: dict[str, list[str]]) -> dict[str, str]:
    """What is not there, with the reason and what to do about it."""
    missing = {}
    if backends.native is None:
        missing["cpu kernels"] = f"{backends._native_missing}; every op runs as its specification"
        if not shutil.which("g++"):
            missing["C++ compiler"] = "g++ is not installed (Debian, Ubuntu: apt-get install g++)"
    elif slow := [op for op, compiled in kernels.items() if "cpu" not in compiled]:
        missing["cpu kernels"] = f"{', '.join(slow)}: not compiled, run as their specification"
    if backends.native is not None and (reason := backends.native.amx_reason()):
        missing["AMX"] = reason
    if backends.native is not None and (reason := backends.native.bf16_reason()):
        missing["products of bf16"] = reason
    if backends.native is None or not backends.native.with_cuda:
        missing["cuda kernels"] = "this build has no CUDA kernels"
    if importlib.util.find_spec("triton") is None:
        missing["triton"] = "triton is not installed"
    if importlib.util.find_spec("llguidance") is None:
        missing["grammars"] = "llguidance is not installed (pip install 'pyspec-kernels[grammar]')"
    return missing


def _models() -> dict[str, Any]:
    from pyspec import env
    from pyspec.models.fetch import SOURCES

    folder = env.cache_dir()
    files = sorted(folder.rglob("*.gguf")) if folder.is_dir() else []
    return {
        "known": sorted(SOURCES),
        "cache": str(folder),
        "cached": [{"file": str(path.relative_to(folder)), "bytes": path.stat().st_size} for path in files],
    }


def describe(facts: dict[str, Any]) -> str:
    """The facts as aligned lines."""
    torch, cpu, models = facts["torch"], facts["cpu"], facts["models"]
    compiled = [op for op, kernels in facts["ops"].items() if {"cpu", "cuda"} & set(kernels)]
    lines = [
        ("pyspec", f"{facts['version']}, Python {facts['python']}, {facts['platform']}"),
        ("torch", f"{torch['version']} ({'CUDA ' + torch['cuda'] if torch['cuda'] else 'CPU build'})"),
        ("GPU", torch["gpu"] or "none"),
        ("CPU", f"{cpu['model']}, {cpu['cores']} cores"),
        ("features", " ".join(cpu["features"]) or "unknown"),
        ("instruction set", facts["isa"] or "none compiled"),
        ("threads", str(facts["threads"])),
        ("backends", ", ".join(facts["backends"])),
        ("compiled ops", f"{len(compiled)} of {len(facts['ops'])}: {', '.join(compiled) or 'none'}"),
        ("Triton ops", f"{len(facts['triton_ops'])} of {len(facts['ops'])}, on a CUDA GPU"),
        *[(f"missing: {what}", why) for what, why in facts["missing"].items()],
        ("known models", ", ".join(models["known"])),
        ("models", f"cached in {models['cache']}: "
                   + (", ".join(f"{m['file']} ({m['bytes'] / 1e6:.0f} MB)" for m in models["cached"]) or "none")),
    ]  # fmt: skip
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{name:<{width}}{value}" for name, value in lines)
