# SPDX-License-Identifier: Apache-2.0
"""What the target is asked when it writes its own training text: chat, code, maths word problems, and texts to summarise or copy.

Nothing is downloaded. Chat has no text here: the model writes the user's turn itself, behind the chat template's user header
(Magpie, arXiv 2406.08464); some others begin it. Code and texts are functions, docstrings and descriptions of the Python installation at hand; word problems
and the functions asked for are put together below. No test set of a benchmark is among them.
"""

from __future__ import annotations

import ast
import importlib.metadata
import random
import re
import sysconfig
import textwrap
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pyspec.training.prompt_parts import (
    CODE_STARTS,
    COPY,
    EDIT,
    ITEMS,
    KEYWORDS,
    MATHS_ENDINGS,
    NAMES,
    NEW_NAMES,
    OPERATIONS,
    PACKAGES,
    PROBLEMS,
    STDLIB_MODULES,
    SUMMARY,
    THINGS,
)

# Share of each kind in a hundred prompts.
MIX = {"chat": 42, "code": 22, "maths": 16, "summary": 12, "copy": 8}
MAX_CHARS = 2000  # of a text that goes into a prompt


@dataclass(frozen=True)
class Ask:
    """One prompt. form: "open" (a message that the model itself finishes before it answers), "chat" (a message) or "raw" (continued as it is)."""

    kind: str
    text: str
    form: str
    temperature: float
    max_tokens: int
    seed: int


def ask(seed: int, index: int) -> Ask:
    """Prompt `index` of the endless list under `seed`: the same on every run with the same Python installation.

    Every second answer is greedy, the others are sampled at temperature 1.
    """
    rng = random.Random(f"{seed} {index}")
    kind = rng.choices(list(MIX), list(MIX.values()))[0]
    text, form, limit = _WRITERS[kind](rng)
    return Ask(kind, text, form, float(rng.random() < 0.5), limit, rng.getrandbits(62))


def _chat(rng: random.Random) -> tuple[str, str, int]:
    return "", "open", 320


def _code(rng: random.Random) -> tuple[str, str, int]:
    header = rng.choice(stdlib_headers()) if rng.random() < 0.6 else _wanted_function(rng)
    form = rng.random()
    if form < 0.65:
        return header, "raw", 224
    if form < 0.75:
        return f"Complete this Python function.\n\n```python\n{header}```", "chat", 288
    if form < 0.85:
        return rng.choice(CODE_STARTS), "open", 320
    name, doc = header.partition("(")[0].split()[-1], header.split('"""')[1].strip().split("\n\n")[0]
    return f"Write a Python function called {name}. {' '.join(doc.split())}", "chat", 288


def _maths(rng: random.Random) -> tuple[str, str, int]:
    problem = _word_problem(rng)
    if rng.random() < 0.3:
        return problem.partition(". ")[0] + ".", "open", 256
    return problem + rng.choice(MATHS_ENDINGS), "chat", 256


def _summary(rng: random.Random) -> tuple[str, str, int]:
    order = rng.choice(SUMMARY)
    if rng.random() < 0.5:
        return f"{order}\n\n", "open", 224
    text = rng.choice(texts())
    return (f"{order}\n\n{text}" if rng.random() < 0.7 else f"{text}\n\n{order}"), "chat", 224


def _copy(rng: random.Random) -> tuple[str, str, int]:
    form = rng.random()
    if form < 0.5:
        order = rng.choice(COPY)
        return (
            (f"{order}\n\n", "open", 288)
            if form < 0.2
            else (f"{order}\n\n{rng.choice(texts())}", "chat", 288)
        )
    function = rng.choice(stdlib_functions())
    names = sorted(set(re.findall(r"\b[a-z_]{3,12}\b", function.split('"""')[-1])) - KEYWORDS) or ["value"]
    order = rng.choice(EDIT).format(old=rng.choice(names), new=rng.choice(NEW_NAMES))
    return f"{order}\n\n```python\n{function}```", "chat", 320


_WRITERS = {"chat": _chat, "code": _code, "maths": _maths, "summary": _summary, "copy": _copy}


def _stdlib_sources() -> list[str]:
    folder = Path(sysconfig.get_path("stdlib"))
    found = (folder / f"{name}.py" for name in STDLIB_MODULES)
    return [path.read_text(encoding="utf-8", errors="replace") for path in found if path.is_file()]


@lru_cache(maxsize=1)
def _documented() -> list[tuple[str, str]]:
    """(header with docstring, whole function) of every documented function, without its decorators, dedented."""
    found = []
    for source in _stdlib_sources():
        lines = source.splitlines(keepends=True)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) and len(node.body) > 1:
                first, doc_end, end = node.lineno - 1, node.body[0].end_lineno, node.end_lineno
                header = textwrap.dedent("".join(lines[first:doc_end]))
                whole = textwrap.dedent("".join(lines[first:end]))
                if header.count('"""') == 2 and header.startswith("def ") and len(header) <= MAX_CHARS:
                    found.append((header.rstrip() + "\n", whole.rstrip() + "\n"))
    return found


@lru_cache(maxsize=1)
def stdlib_headers() -> list[str]:
    """Signature and docstring of documented functions of the standard library."""
    return [header for header, _ in _documented()]


@lru_cache(maxsize=1)
def stdlib_functions() -> list[str]:
    """Short whole functions of the standard library."""
    return [whole for _, whole in _documented() if 6 <= whole.count("\n") <= 30 and len(whole) <= 1200]


@lru_cache(maxsize=1)
def texts() -> list[str]:
    """Paragraphs of prose, 300 to 1400 characters: long docstrings of the standard library, descriptions of a few packages."""
    whole = []
    for source in _stdlib_sources():
        tree = ast.parse(source)
        for node in [tree, *ast.walk(tree)]:
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (
                doc := ast.get_docstring(node)
            ):
                whole.append(doc)
    for name in PACKAGES:
        try:
            whole.append(str(importlib.metadata.metadata(name).json.get("description", "")))
        except importlib.metadata.PackageNotFoundError:
            continue
    found: dict[str, None] = {}
    for text in whole:
        for passage in _passages(text):
            found[passage] = None
    return list(found)


def _passages(text: str) -> list[str]:
    """Runs of neighbouring paragraphs that read as prose."""
    runs: list[list[str]] = [[]]
    for paragraph in re.split(r"\n\s*\n", text):
        letters = sum(char.isalpha() or char in " ,.\n" for char in paragraph)
        prose = (
            len(paragraph) > 80
            and letters > 0.93 * len(paragraph)
            and paragraph.rstrip().endswith((".", ":"))
        )
        if not prose or sum(map(len, runs[-1])) + len(paragraph) > 1400:
            runs.append([])
        if prose:
            runs[-1].append(paragraph.strip())
    joined = ("\n\n".join(run) for run in runs)
    return [passage for passage in joined if 300 <= len(passage) <= 1400]


def _wanted_function(rng: random.Random) -> str:
    (name, doc), (word, things, holder, arguments, result) = rng.choice(OPERATIONS), rng.choice(THINGS)
    hints = rng.random() < 0.6
    if not hints:
        arguments, result = re.sub(r": [^,]*(\[[^]]*\])*[^,]*", "", arguments), ""
    arrow = f" -> {result}" if hints and result else ""
    title = doc.format(x=things, c=holder)
    return f'def {name.format(w=word)}({arguments}){arrow}:\n    """{title}"""\n'


def _word_problem(rng: random.Random) -> str:
    first, second = rng.sample(NAMES, 2)
    things, others = rng.sample(ITEMS, 2)
    return rng.choice(PROBLEMS).format(
        a=first,
        b=second,
        x=things,
        y=others,
        m=rng.randint(20, 240),
        n=rng.randint(4, 60),
        k=rng.randint(2, 15),
    )
