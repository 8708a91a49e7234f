# SPDX-License-Identifier: Apache-2.0
"""Compiles on demand, into build/emulator: the machine, the bindings, every kernel twice: plain, and for the checker.

A library is compiled again when its command or any file that it was made from has changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sysconfig
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent.resolve()
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "emulator"
_CXX = os.environ.get("CXX", "g++").split()[0]
# The checked build rests on how g++ instruments loads and stores.
CXX = _CXX if re.fullmatch(r"(.*[-/])?g\+\+(-\d+)?", _CXX) else "g++"
COMMON = ["-std=c++20", "-O2", "-g1", "-fPIC", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas"]
# The machine sums in vectors of doubles; no result depends on their width, since contraction is off.
MACHINE = ["-O3", "-march=native", "-fno-semantic-interposition", "-ftls-model=initial-exec", "-pthread"]
# Calls from two lines stay two calls, for their line numbers.
KERNEL = ["-x", "c++", "-fno-gnu-unique", "-fno-crossjumping", "-Wno-unused-function"]
# Loads and stores as they are in the source: vector types as one access (no scalar replacement of their
# fields), others neither merged nor turned into calls of memcpy. Counts are then those of the source.
CHECKED = [
    "-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0", "-fsanitize=alignment", "-fno-tree-vectorize",
    "-fno-tree-sra", "-fno-ipa-sra", "-fno-store-merging", "-fno-tree-loop-distribute-patterns",
]  # fmt: skip


class BuildError(RuntimeError):
    """The compiler's own words."""


def cuda_include() -> Path | None:
    """The folder of the CUDA toolkit's headers, or of those that pip packages of NVIDIA install."""
    folders = [
        Path(home) / "include" for home in (os.environ.get("CUDA_HOME", ""), "/usr/local/cuda") if home
    ]
    if nvcc := shutil.which("nvcc"):
        folders.append(Path(nvcc).resolve().parent.parent / "include")
    folders += sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/include"))
    return next((folder for folder in folders if (folder / "cuda_fp8.h").exists()), None)


def why_not() -> str:
    """Why the emulator cannot run here; empty if it can."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return (
            f"the CUDA emulator runs on Linux on x86-64, not on {platform.system()} on {platform.machine()}"
        )
    if shutil.which(CXX) is None:
        return f"the CUDA emulator needs g++, {CXX} is not there"
    if cuda_include() is None:
        return "the CUDA emulator needs CUDA's headers: a toolkit, or nvidia-cuda-runtime and -crt of pip"
    return ""


def machine() -> Path:
    """The emulator itself, without torch."""
    flags = [*COMMON, *MACHINE, f"-I{HERE}", f"-I{cuda_include()}"]
    objects = [_object(f"machine.{source.stem}", source, flags) for source in sorted(HERE.glob("*.cpp"))]
    return _library("machine", objects, ["-pthread", "-Wl,-Bsymbolic"])


def kernel(source: Path, checked: bool) -> Path:
    """The library of one .cu file, for the checker or plain."""
    flags = [*COMMON, *KERNEL, *(CHECKED if checked else [])]
    flags += [f"-I{path}" for path in (HERE, ROOT / "csrc", ROOT / "csrc/include", cuda_include())]
    name = f"{source.stem}.{'checked' if checked else 'plain'}"
    # The symbols of one must not be those of the other. The checker is no part of the library.
    return _library(name, [_object(name, source, flags)], ["-Wl,-Bsymbolic"])


def allocator() -> Path:
    """torch's allocator of guarded memory."""
    return _torch_library("allocator", HERE / "torch/allocator.cpp")


def bindings() -> Path:
    """csrc/cuda/bind.cpp for CPU tensors: it reads torch's headers, which takes 20 s."""
    return _torch_library("bindings", ROOT / "csrc/cuda/bind.cpp")


def _torch_library(name: str, source: Path) -> Path:
    root = Path(torch.__file__).parent
    includes = [HERE, ROOT / "csrc", ROOT / "csrc/include", root / "include"]
    includes.append(root / "include/torch/csrc/api/include")
    flags = ["-std=c++20", "-O1", "-fPIC", "-w", "-DPYSPEC_EMULATED", *(f"-I{path}" for path in includes)]
    flags.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
    libraries = [f"-L{root / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10"]
    return _library(name, [_object(name, source, flags)], libraries)


def _object(name: str, source: Path, flags: list[str]) -> Path:
    return _made(name, ".o", [*flags, "-c", str(source)])


def _library(name: str, objects: list[Path], flags: list[str]) -> Path:
    return _made(name, ".so", ["-shared", *map(str, objects), *flags])


def _made(name: str, suffix: str, arguments: list[str]) -> Path:
    """The compiler's output for these arguments: made unless it is there, of files that are as they were."""
    BUILD.mkdir(parents=True, exist_ok=True)
    if fresh := _fresh(name, suffix, arguments):
        return fresh
    with open(BUILD / f"{name}{suffix}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of processes that want the same, one makes it
        return _fresh(name, suffix, arguments) or _make(name, suffix, arguments)


def _fresh(name: str, suffix: str, arguments: list[str]) -> Path | None:
    stamp = BUILD / f"{name}{suffix}.made_from"
    if not stamp.exists():
        return None
    key, *made_from = stamp.read_text().splitlines()
    made = BUILD / f"{name}.{key}{suffix}"
    return made if made.exists() and _key(arguments, made_from) == key else None


def _make(name: str, suffix: str, arguments: list[str]) -> Path:
    unfinished = BUILD / f"{name}.unfinished"
    output, dependencies, stamp = (Path(f"{unfinished}{end}") for end in (suffix, ".d", ".stamp"))
    listing = ["-MMD", "-MF", str(dependencies)] if suffix == ".o" else []
    command = [CXX, *arguments, *listing, "-o", str(output)]
    begin = time.time()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(f"{name} does not compile:\n{' '.join(command)}\n{done.stderr}")
    made_from = _project_files(dependencies) if listing else []
    key = _key(arguments, made_from)
    for old in BUILD.glob(f"{name}.{'[0-9a-f]' * 16}{suffix}"):
        old.unlink(missing_ok=True)  # who has loaded it keeps it
    output.replace(BUILD / f"{name}.{key}{suffix}")
    if any(Path(file).stat().st_mtime >= begin for file in made_from):
        return BUILD / f"{name}.{key}{suffix}"  # edited meanwhile: the next call makes it again
    stamp.write_text("\n".join([key, *made_from]))
    stamp.replace(BUILD / f"{name}{suffix}.made_from")
    return BUILD / f"{name}.{key}{suffix}"


def _project_files(dependencies: Path) -> list[str]:
    """The project's own files among those that the compiler read: others change with their toolkits."""
    names = dependencies.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    dependencies.unlink()
    files = {Path(name).resolve() for name in names}
    return sorted(str(file) for file in files if file.is_relative_to(ROOT) and ".venv" not in file.parts)


def _key(arguments: list[str], made_from: list[str]) -> str:
    digest = hashlib.sha256("\n".join([CXX, *arguments, torch.__version__]).encode())
    for file in made_from:
        digest.update(Path(file).read_bytes() if Path(file).exists() else b"")
    return digest.hexdigest()[:16]
