# SPDX-License-Identifier: Apache-2.0
"""Compiles every CUDA and Triton kernel for every target, without a GPU, and keeps what the machine code says.

Results lie under build/gpu_static by a hash of all that they depend on, so a kernel is compiled again only after a change.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import pkgutil
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .occupancy import TARGETS, Occupancy, occupancy
from .sass import Code, read_cubin, tool

ROOT = Path(__file__).parent.parent
CACHE = ROOT / "build/gpu_static"
# What reads the machine code, and the form in which its findings are kept: raise the number when that changes.
READERS = [(Path(__file__).parent / "sass.py").read_bytes(), 1]
_SPILLS = re.compile(
    r"Compiling entry function '(\w+)' for '\w+'.*?(\d+) bytes spill stores, (\d+) bytes spill loads",
    re.DOTALL,
)
_INCLUDE = re.compile(r'^\s*#include\s+"([^"]+)"', re.MULTILINE)


@dataclass(frozen=True)
class Kernel:
    """One kernel of one source for one target. code.shared_bytes: static, and what Triton asks for at launch."""

    source: str  # csrc/cuda/<file>.cu or kernels/<file>.py
    name: str
    target: str
    code: Code
    spill_bytes: int
    threads: int = 0  # of a block as it is launched; 0: unknown, the most that it is compiled for
    dynamic_bytes: int = 0  # of shared memory, besides code.shared_bytes

    @property
    def shared_bytes(self) -> int:
        """Of a block, static and dynamic."""
        return self.code.shared_bytes + self.dynamic_bytes

    @property
    def occupancy(self) -> Occupancy:
        threads = self.threads or self.code.threads
        return occupancy(self.target, threads, self.code.registers, self.shared_bytes)

    @property
    def label(self) -> str:
        return f"{Path(self.source).stem}: {self.name}"


def compile_all(targets: Iterable[str] = TARGETS, workers: int = 2) -> list[Kernel]:
    """Every kernel for every target, in order; RuntimeError with the text of every compilation that failed, after all others.

    CPython 3.11 cannot parse Python in two threads at once ("AST constructor recursion depth mismatch"), so Triton stays in this
    thread, beside `workers` processes of nvcc, which take most of the time.
    """
    sources = [] if why_no_nvcc() else sorted((ROOT / "csrc/cuda").glob("*.cu"))
    cases = [] if why_no_triton() else list(triton_cases())
    targets, failures = tuple(targets), list[str]()

    def attempt(compile: Callable[[Any, str], list[Kernel]], what: Any, target: str) -> list[Kernel]:
        try:
            return compile(what, target)
        except Exception as error:
            failures.append(str(error))
            return []

    nvcc_flags()  # parses setup.py, once
    with ThreadPoolExecutor(workers) as pool:
        cuda = [
            [pool.submit(attempt, compile_cuda, source, target) for source in sources] for target in targets
        ]
        triton = [[attempt(compile_triton, case, target) for case in cases] for target in targets]
    if failures:
        raise RuntimeError("\n".join(failures))
    found: list[list[Kernel]] = []
    for waiting, done in zip(cuda, triton, strict=True):
        found += [*(future.result() for future in waiting), *done]
    return [kernel for kernels in found for kernel in kernels]


def why_no_nvcc() -> str:
    """Why CUDA sources cannot be compiled; empty if they can."""
    if not (ROOT / "csrc/cuda").is_dir():
        return "csrc/cuda is not here: the CUDA sources are in the repository, not in an installed package"
    return "" if shutil.which("nvcc") else "nvcc is not on PATH"


def why_no_triton() -> str:
    """Why Triton kernels cannot be compiled; empty if they can."""
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton is not installed: {error}"
    return ""


def compile_cuda(source: Path, target: str) -> list[Kernel]:
    """The kernels of one .cu file for one target; warnings are errors, spills a matter of the budgets."""
    key = _digest(_nvcc_version(), nvcc_flags(), target, *(path.read_bytes() for path in included(source)))
    return _cached(f"{source.stem}-{target}-{key}", lambda: _nvcc(source, target))


def _nvcc(source: Path, target: str) -> list[Kernel]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / f"{source.stem}.cubin"
        command: list[str | Path] = [
            "nvcc", *nvcc_flags(), "-I", ROOT / "csrc", "-I", ROOT / "csrc/include", f"-arch={target}", "-cubin",
            "-Xptxas=-v", "-Werror=all-warnings", "-o", cubin, source,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        log = done.stdout + done.stderr
        if done.returncode:
            raise RuntimeError(f"bench: {source.name} must compile for {target}, got\n{log}")
        spills = {name: int(stores) + int(loads) for name, stores, loads in _SPILLS.findall(log)}
        codes = read_cubin(cubin)
    names = _demangled(codes)
    where = source.relative_to(ROOT).as_posix()
    return [Kernel(where, names[mangled], target, code, spills[mangled]) for mangled, code in codes.items()]


def compile_triton(case: Any, target: str) -> list[Kernel]:
    """One of `aot_cases()` for one target; nothing if it is not launched so there."""
    aot = importlib.import_module("pyspec.kernels.aot")
    capability = int(re.sub(r"\D", "", target))
    if capability < case.least_capability:
        return []
    name = f"{case.fn.__module__}.{case.fn.__name__}"
    key = _digest(case.fn.cache_key, case.signature, case.constexprs, case.attrs, case.options, case.num_warps, case.num_stages, target, aot.triton.__version__)  # fmt: skip

    def build() -> list[Kernel]:
        try:
            binary = aot.compiled(case, capability)
        except Exception as error:
            raise RuntimeError(f"bench: {case.name} must compile for {target}, got\n{error}") from error
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernel.cubin"
            cubin.write_bytes(binary.asm["cubin"])
            ((_, code),) = read_cubin(cubin).items()
        metadata = binary.metadata
        code = Code(**{**asdict(code), "shared_bytes": metadata.shared, "threads": 32 * metadata.num_warps})
        source = f"kernels/{name.split('.')[-2]}.py"
        return [Kernel(source, case.name, target, code, code.local_bytes)]  # ptxas tells nobody

    return _cached(f"{re.sub('[^A-Za-z0-9_.-]', '_', case.name)}-{target}-{key}", build)


def triton_cases() -> Iterator[Any]:
    """`aot_cases()` of every kernels/<op>.py."""
    package = importlib.import_module("pyspec.kernels")
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda found: found.name):
        cases = getattr(importlib.import_module(f"pyspec.kernels.{module.name}"), "aot_cases", None)
        yield from cases() if cases else ()


@lru_cache(maxsize=1)
def nvcc_flags() -> list[str]:
    """NVCC_FLAGS of setup.py, which cannot be imported: it would build."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    values = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    return ast.literal_eval(values["NVCC_FLAGS"])


def included(source: Path) -> list[Path]:
    """A source and every file of the project that it includes, directly or not."""
    found, waiting = [], [source]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.append(path)
        for name in _INCLUDE.findall(path.read_text(encoding="utf-8")):
            folders = (path.parent, ROOT / "csrc", ROOT / "csrc/include")
            waiting += [folder / name for folder in folders if (folder / name).is_file()][:1]
    return sorted(found)


@lru_cache(maxsize=1)
def _nvcc_version() -> str:
    done = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True)
    return done.stdout


def _demangled(names: Iterable[str]) -> dict[str, str]:
    """Names as in the source: `attend<64, true>`, without namespace and arguments."""
    names = list(names)
    filter = shutil.which("cu++filt") or shutil.which("c++filt")
    if filter is None or not names:
        return {name: name for name in names}
    done = subprocess.run([filter, *names], capture_output=True, text=True, check=True)
    return {mangled: short_name(text) for mangled, text in zip(names, done.stdout.splitlines(), strict=True)}


def short_name(text: str) -> str:
    """`void pyspec::(anonymous namespace)::norm_rows<(bool)0>(pyspec::RmsNormParams)` is `norm_rows<0>`."""
    depth, end = 0, len(text)
    if text.endswith(")"):
        for i in range(len(text) - 1, -1, -1):  # the last group in parentheses: the arguments
            depth += (text[i] == ")") - (text[i] == "(")
            if depth == 0:
                end = i
                break
    text = re.sub(r"\((?:anonymous namespace|bool|int|long|unsigned int|[\w: ]+)\)", "", text[:end])
    return re.sub(r"\b(?:\w+)?::+", "", text).removeprefix("void ").strip(": ")


def _digest(*parts: object) -> str:
    hashed = hashlib.sha256()
    for part in (
        tool("nvdisasm"),
        (ROOT / "bench/sass.py").read_bytes(),
        Path(__file__).read_bytes(),
        *parts,
    ):
        hashed.update(part if isinstance(part, bytes) else repr(part).encode())
        hashed.update(b"\0")
    return hashed.hexdigest()[:24]


def _cached(name: str, build: Callable[[], list[Kernel]]) -> list[Kernel]:
    path = CACHE / f"{name}.json"
    if not path.exists():
        text = json.dumps([asdict(kernel) for kernel in build()])
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{id(text)}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    return [Kernel(**{**k, "code": Code(**k["code"])}) for k in json.loads(path.read_text(encoding="utf-8"))]
