# SPDX-License-Identifier: Apache-2.0
"""End to end: plain and speculative decoding by class of prompt, in turns; prefill speed; memory at context 2048.

Tokens/s are of decoding alone (prefill has its own row). Plain and speculative answers of a prompt are made in turns and
must be the same tokens; ratio is the median over rounds of speculative over plain within one turn.

With --peers the engine stands beside others instead (bench/peers): prefill, decoding, batches, memory and loading.
"""

from __future__ import annotations

import resource
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .harness import GateError, Options, Row, make_row, peaks, spread
from .prompt_classes import CLASSES, HARBOUR

if TYPE_CHECKING:
    from pyspec.engine import LLM, SamplingParams

CONTEXT = 2048
SPECULATION = "auto"


def rows(options: Options) -> Iterator[Row]:
    """Rows of memory, prefill and every class of prompts; GateError if an answer depends on speculation."""
    if options.peers:
        from . import peer_comparison

        yield from peer_comparison.rows(options)
        return
    from pyspec.engine import LLM, SamplingParams

    baseline = resident_bytes()
    llm = LLM(options.model, speculation=SPECULATION, max_batch=1, max_context=CONTEXT)
    yield from memory_rows(llm, baseline)
    yield from prefill_rows(llm, 1 if options.quick else 5)
    params = SamplingParams(max_tokens=32 if options.quick else options.max_tokens)
    for name, prompts in CLASSES.items():
        yield from class_rows(
            llm, name, prompts[:1] if options.quick else prompts, params, 1 if options.quick else 5
        )


def class_rows(
    llm: LLM, name: str, prompts: tuple[str, ...], params: SamplingParams, rounds: int
) -> Iterator[Row]:
    """Plain and speculative tokens/s of one class, over its prompts and `rounds` turns of each."""
    plain_speeds, speeds, ratios, lengths = [], [], [], []
    for prompt in prompts:
        text = llm.chat_prompt([{"role": "user", "content": prompt}])
        for _ in range(rounds):
            plain, tree = (
                llm.generate(text, replace(params, speculation=speculation))[0]
                for speculation in ("off", None)
            )
            if plain.token_ids != tree.token_ids:
                raise GateError(f"e2e: speculation must not change the answer, got a difference in {name!r}")
            plain_speeds.append(plain.stats.tokens_per_second)
            speeds.append(tree.stats.tokens_per_second)
            ratios.append(speeds[-1] / plain_speeds[-1])
            lengths.append(tree.stats.mean_accepted_length)
    backend = llm.executor_name
    for metric, values in (("plain_tokens_per_s", plain_speeds), ("spec_tokens_per_s", speeds)):
        for percentile, value in zip(("", "_p20", "_p80"), _middle_first(values), strict=True):
            ratio = statistics.median(ratios) if metric.startswith("spec") and not percentile else None
            yield make_row("e2e", name, backend, metric + percentile, value, "tokens/s",
                           peer="plain" if ratio else None, ratio=ratio)  # fmt: skip
    low = min(ratios)
    yield make_row("e2e", name, backend, "lowest_ratio", low, "x", peer="plain", ratio=low)
    yield make_row("e2e", name, backend, "mean_accepted_length", statistics.fmean(lengths), "tokens/step")


def prefill_rows(llm: LLM, rounds: int) -> Iterator[Row]:
    """Prompt tokens/s at 512 tokens and at nearly the whole context."""
    from pyspec.engine import SamplingParams

    for length in (512, CONTEXT - 64):
        ids = long_prompt(llm, length)
        values = []
        for _ in range(rounds):
            stats = llm.generate([ids], SamplingParams(max_tokens=1, ignore_eos=True))[0].stats
            values.append(length / stats.prefill_seconds)
        yield make_row("e2e", f"prompt {length}", llm.executor_name, "prefill_tokens_per_s",
                       statistics.median(values), "tokens/s")  # fmt: skip


def memory_rows(llm: LLM, baseline: int) -> Iterator[Row]:
    """Memory that loading and answering at a full context added at most, against the size of the weights' file."""
    from pyspec.engine import SamplingParams

    length = CONTEXT - 64
    stats = llm.generate([long_prompt(llm, length)], SamplingParams(max_tokens=64, ignore_eos=True))[0].stats
    added = peak_resident_bytes() - baseline
    held = llm.memory_bytes()
    file = file_bytes(llm.checkpoint.path)
    case, backend = f"context {CONTEXT}", llm.executor_name
    for part, value in held.items():
        yield make_row("e2e", case, backend, f"{part}_bytes", value, "bytes")
    yield make_row(
        "e2e", case, backend, "peak_memory", added, "bytes", peer="file of weights", ratio=added / file
    )
    read_floor = file / (peaks().read_gbps * 1e9)  # a step reads every weight once
    yield make_row("e2e", case, backend, "decode_tokens_per_s", stats.tokens_per_second, "tokens/s",
                   peak_pct=100 * read_floor * stats.steps / stats.decode_seconds)  # fmt: skip


def long_prompt(llm: LLM, length: int) -> list[int]:
    """`length` tokens of plain text."""
    ids = llm.tokenizer.encode(HARBOUR)
    return (ids * (length // len(ids) + 1))[:length]


def file_bytes(path: Path) -> int:
    """Size of a model file, or of the safetensors of a folder."""
    return sum(p.stat().st_size for p in path.glob("*.safetensors")) if path.is_dir() else path.stat().st_size


def resident_bytes() -> int:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak_resident_bytes() -> int:
    """The most memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _middle_first(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = spread(values)
    return middle, low, high
