# SPDX-License-Identifier: Apache-2.0
"""Training data as JSON lines, read with care: every line is checked before it is used.

A line is {"prompt": P, "answer": A}, both lists of token ids or both texts; or {"prompt": text} alone, which the target then answers itself.
A text is a user's message where the model has a chat template, and continued as it is with "raw": true or without a template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_FILE_BYTES = 1 << 30
_SHARD = re.compile(r"shard-\d{5}\.jsonl")


@dataclass(frozen=True)
class Sample:
    """Token ids of a prompt and of the answer behind it, neither empty."""

    kind: str
    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Written:
    """A prompt as text, with its answer if it has one."""

    prompt: str
    answer: str | None
    raw: bool


def read_data(path: Path, vocab_size: int) -> list[Sample | Written]:
    """The lines of a file, or of a folder's shard-*.jsonl. ValueError names the file and line that is malformed."""
    if not path.exists():
        raise ValueError(f"data: path must be a file of JSON lines or a folder of shards, got '{path}'")
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if _SHARD.fullmatch(p.name))
    found = [line for file in files for line in _read(file, vocab_size)]
    if not found:
        raise ValueError(f"data: {path} must hold samples, got none")
    return found


def read_shard(path: Path, vocab_size: int) -> Iterator[Sample]:
    """The samples of a file that holds token ids alone; ValueError as for read_data."""
    for line in _read(path, vocab_size):
        if isinstance(line, Written):
            raise ValueError(f"data: {path} must hold token ids, got text")
        yield line


def _read(path: Path, vocab_size: int) -> Iterator[Sample | Written]:
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(f"data: {path} must have at most {MAX_FILE_BYTES} bytes, got {size}")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _parse(line, vocab_size, f"data: {path} line {number}")


def _parse(line: bytes, vocab_size: int, where: str) -> Sample | Written:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} must be JSON, got {error}") from None
    if not isinstance(value, dict) or "prompt" not in value:
        raise ValueError(f"{where} must be an object with a prompt, got {str(value)[:60]!r}")
    prompt, answer, raw = value["prompt"], value.get("answer"), value.get("raw", False)
    if isinstance(prompt, str):
        if not prompt.strip() or not (answer is None or (isinstance(answer, str) and answer)):
            raise ValueError(f"{where} must have texts that are not empty, got {str(value)[:60]!r}")
        if not isinstance(raw, bool):
            raise ValueError(f"{where}: raw must be true or false, got {raw!r}")
        return Written(prompt, answer, raw)
    for name, ids in (("prompt", prompt), ("answer", answer)):
        if not isinstance(ids, list) or not ids:
            raise ValueError(
                f"{where}: {name} must be a text or a list with at least one token id, got {str(ids)[:60]!r}"
            )
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
                raise ValueError(f"{where}: {name} must have token ids in [0, {vocab_size}), got {token!r}")
    return Sample(str(value.get("kind", "data"))[:32], list(prompt), list(answer or ()))
