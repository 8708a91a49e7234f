# SPDX-License-Identifier: Apache-2.0
"""The house's own rules: stems agree, files stay short, licences stand, nothing dangerous is called."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pyspec.contract import OPS

ROOT = Path(__file__).parent.parent
ROOMS = ("pyspec", "kernels", "bench", "tools", "tests", "csrc")
SOURCES = sorted(
    path
    for room in ROOMS
    for pattern in ("*.py", "*.cpp", "*.h", "*.cu", "*.cuh")
    for path in (ROOT / room).rglob(pattern)
)
PYTHON = [ROOT / "setup.py", *(path for path in SOURCES if path.suffix == ".py")]
HARD_LIMIT = 500  # lines
ENV_READERS = {"pyspec/env.py", "setup.py", "csrc/cpu/isa.cpp", "csrc/cpu/thread_pool.cpp"}
ENV_WRITERS = {"tools", "tests"}  # they set variables for the processes they start
ENV_VARIABLES = {"PYSPEC_ISA", "PYSPEC_NUM_THREADS", "PYSPEC_CACHE", "PYSPEC_SPEC_ONLY", "PYSPEC_BUILD"}
FORBIDDEN_CALLS = {"eval", "exec", "pickle.load", "pickle.loads", "torch.load", "marshal.loads", "os.system"}
FORBIDDEN_IMPORTS = {"pickle", "marshal", "shelve", "dill"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def limit_of(path: Path) -> int:
    """Lines a file of this room may have."""
    room = path.relative_to(ROOT).parts[0]
    return 400 if room in ("csrc", "kernels", "tests") else 300


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_file_is_short_and_licensed(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines, "an empty file"
    assert re.fullmatch(r"(#|//) SPDX-License-Identifier: Apache-2\.0", lines[0]), lines[0]
    assert len(lines) <= HARD_LIMIT
    if len(lines) > limit_of(path):
        assert any("over the limit:" in line for line in lines[:20]), (
            f"{len(lines)} lines without a reason at the head"
        )


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_file_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        assert ast.get_docstring(ast.parse(text)), "no docstring"
    else:
        assert text.splitlines()[1].startswith("//"), "no comment on line 2"


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_no_dangerous_call(path: Path) -> None:
    for node in nodes(path):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in FORBIDDEN_CALLS, f"line {node.lineno}"
            shell = [k for k in node.keywords if k.arg == "shell" and ast.unparse(k.value) != "False"]
            assert not shell, f"line {node.lineno}: shell"
        elif isinstance(node, ast.Import):
            assert not FORBIDDEN_IMPORTS & {alias.name for alias in node.names}, f"line {node.lineno}"
        elif isinstance(node, ast.ImportFrom):
            assert node.module not in FORBIDDEN_IMPORTS, f"line {node.lineno}"


@pytest.mark.parametrize("path", [ROOT / "setup.py", *SOURCES], ids=name_of)
def test_environment_is_read_in_one_place(path: Path) -> None:
    if name_of(path) in ENV_READERS or path.relative_to(ROOT).parts[0] in ENV_WRITERS:
        return
    assert not re.search(r"(?<!\*\*)os\.environ|\bgetenv\(", path.read_text(encoding="utf-8"))


def test_environment_variables_are_the_documented_ones() -> None:
    used = {
        name
        for path in [ROOT / "setup.py", *SOURCES]
        if path.relative_to(ROOT).parts[0] not in ENV_WRITERS
        for name in re.findall(
            r"(?:environ|getenv)\W+(?:get\(\W*)?\"?(PYSPEC_\w+)", path.read_text(encoding="utf-8")
        )
    }
    assert used == ENV_VARIABLES
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in sorted(used) if f"`{name}" not in readme] == []


def shares(path: Path, op: str) -> bool:
    """Whether the head of a file, which says what it is, names this op: a family of ops may share a file."""
    head = "\n".join(path.read_text(encoding="utf-8").splitlines()[1:4])
    return re.search(rf"\b{op}\b", head) is not None


# Layouts of the CPU's kernels: on GPUs the same work is done on raw rows and paged KV.
CPU_LAYOUTS = {
    "pack_weight",
    "pack_int8_weight",
    "pack_quant_weight",
    "linear_packed",
    "w8a8_linear_packed",
    "tile_kv",
}
# Without a kernel of their own on GPUs so far: their specification runs there.
NOT_ON_GPUS = {"draw_children", "edit_logits", "verify_drawn"}
STEMS = [
    ("csrc/include/pyspec", "{}.h"),
    ("csrc/bind", "{}.*"),
    ("csrc/cuda", "{}.cu"),
    ("kernels", "{}.py"),
    ("tests/ops", "test_{}.py"),
    ("tests/cuda_emulated", "test_cuda_{}.py"),
    ("tests/triton_emulated", "test_triton_{}.py"),
]


@pytest.mark.parametrize(("folder", "pattern"), STEMS)
@pytest.mark.parametrize("op", sorted(OPS))
def test_stems_of_an_op_agree(op: str, folder: str, pattern: str) -> None:
    """Every op has its file in every room, or a family's file whose head names it."""
    assert (ROOT / "pyspec" / "spec" / f"{op}.py").exists()
    if op in CPU_LAYOUTS | NOT_ON_GPUS and any(word in folder for word in ("cuda", "kernels", "triton")):
        return
    room = ROOT / folder
    family = [path for path in room.glob(pattern.format("*")) if shares(path, op)]
    assert list(room.glob(pattern.format(op))) or family, f"no {folder}/{pattern.format(op)}"


def test_every_kernel_has_a_header() -> None:
    plain = next(
        ast.literal_eval(node.value)
        for node in nodes(ROOT / "setup.py")
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PLAIN"
    )
    headers = {path.stem for path in (ROOT / "csrc/include/pyspec").glob("*.h")}
    assert {path.stem for path in (ROOT / "csrc/cpu").glob("*.cpp")} - plain <= headers


@pytest.mark.parametrize("op", sorted(OPS))
def test_op_is_public_and_documented(op: str) -> None:
    from pyspec import ops

    assert op in ops.__all__
    assert (getattr(ops, op).__doc__ or "").strip()
    structure = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    assert f"`{op}`" in structure, "docs/structure.md does not name it"


def test_readme_figures_are_generated() -> None:
    from tools import readme_table

    assert readme_table.main(["--check"]) == 0
