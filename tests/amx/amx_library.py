# SPDX-License-Identifier: Apache-2.0
"""Compiles the AMX kernels with tiles in software (tiles.cpp) into build/amx, as setup.py compiles them with the processor's."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from pyspec.backends import native

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "amx"
CXX = os.environ.get("CXX", "g++").split()[0]
FLAGS = [
    "-std=c++20",
    "-O1",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-fPIC",
    "-pthread",
    "-w",
]
PLAIN = (
    "csrc/cpu/amx_check.cpp",
    "csrc/cpu/bf16_check.cpp",
    "csrc/cpu/isa.cpp",
    "csrc/cpu/thread_pool.cpp",
    "tests/amx/tiles.cpp",
)


def why_not() -> str:
    """Why the kernels cannot run here; empty if they can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "the AMX kernels are compiled on Linux on x86-64"
    if native is None or "avx2" not in native.cpu_features().split():
        return "the rest of the AMX kernels needs compiled kernels and at least AVX2"
    return "" if shutil.which(CXX) else f"{CXX} is not there"


def library() -> Path:
    """The library, compiled again when a source has changed. Lanes are AVX-512's, or AVX2's where there is nothing else."""
    setup = _setup()
    lanes = "avx512" if "avx512vnni" in native.cpu_features().split() else "avx2"
    units = [(op, isa) for op in ("quant_linear", "w8a8_linear") for isa in ("amx", lanes)]
    units.append(("quantize_activations", lanes))
    texts = {
        f"{op}.{isa}": setup.unit_text(op, isa, setup.X86_TARGETS[lanes], lanes if isa == "amx" else "")
        for op, isa in units
    }
    defines = ["-DPYSPEC_AMX_TWIN", f"-DPYSPEC_AMX_LANES={lanes}"]
    sources = sorted(
        [
            *(ROOT / "csrc").rglob("*.h"),
            *(ROOT / "csrc/cpu").glob("*.cpp"),
            Path(__file__).with_name("tiles.cpp"),
        ]
    )
    state = hashlib.sha256(repr((texts, FLAGS, defines, CXX)).encode())
    for source in sources:
        state.update(source.read_bytes())
    path = BUILD / f"amx-{state.hexdigest()[:16]}.so"
    if path.exists():
        return path
    BUILD.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        setup.write_if_changed(BUILD / f"{name}.cpp", text)
    flags = [
        *FLAGS,
        *defines,
        f"-I{ROOT / 'csrc'}",
        f"-I{ROOT / 'csrc/include'}",
        f"-I{Path(__file__).parent}",
    ]
    files = [*(BUILD / f"{name}.cpp" for name in texts), *(ROOT / name for name in PLAIN)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda file: _compile(file, flags), files))
    for old in BUILD.glob("amx-*.so"):
        old.unlink()
    _run([CXX, "-shared", "-pthread", *objects, "-o", str(path)])
    return path


def load(path: Path) -> ctypes.CDLL:
    """The library with the types of its functions."""
    loaded = ctypes.CDLL(str(path))
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    loaded.quant_linear.argtypes = [pointer] * 4 + [ctypes.c_int, ctypes.c_bool] + [count] * 3
    loaded.w8a8_linear.argtypes = [pointer] * 5 + [count] * 3
    for name in ("quant_linear", "w8a8_linear", "check_reason"):
        getattr(loaded, name).restype = ctypes.c_char_p
    loaded.tile_dots.restype = count
    return loaded


def _compile(file: Path, flags: list[str]) -> str:
    to = str(BUILD / f"{file.stem}.o")
    _run([CXX, *flags, "-c", str(file), "-o", to])
    return to


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the AMX kernels do not compile:\n{done.stdout}{done.stderr}")


def _setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pyspec_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
