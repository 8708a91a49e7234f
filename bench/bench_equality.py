# SPDX-License-Identifier: Apache-2.0
"""Equality: the same tokens and the same bits of logprobs with and without speculation, alone and in a batch.

Every prompt is answered plain at the smallest batch size (1: alone) once a temperature; every other way is compared with that. Ways:
`tree` (the suffix tree's drafts) and `random` (trees of random shape and tokens), greedy; `sampled`: the suffix tree's
drafts at temperature 0.7 (with top-k and top-p) and 1.0, one seed a prompt; each at every batch size, and plain at every
larger batch size. Prompts are done in blocks, so a run that is stopped reports the blocks that it has finished.
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tqdm import tqdm

from .harness import GateError, Options, Row, make_row
from .prompts import Prompt, load

if TYPE_CHECKING:
    from pyspec.engine import LLM, Completion, SamplingParams

MODES = ("tree", "random", "sampled")


@dataclass(frozen=True)
class Way:
    """One way of answering, compared with the plain answer of the same sampling."""

    sampling: str
    speculation: str
    batch: int

    @property
    def case(self) -> str:
        return (
            f"{self.sampling}/{'plain' if self.speculation == 'off' else self.speculation}/batch{self.batch}"
        )


@dataclass
class Tally:
    """What the comparison of one way has found."""

    prompts: int = 0
    tokens: int = 0
    steps: int = 0
    differing_tokens: int = 0
    differing_bits: int = 0

    def add(self, plain: Completion, other: Completion) -> None:
        self.prompts += 1
        self.tokens += len(other.token_ids)
        self.steps += other.stats.steps
        self.differing_tokens += count_differing(plain.token_ids, other.token_ids)
        self.differing_bits += count_differing_bits(plain.logprobs or [], other.logprobs or [])


def count_differing(a: list[int], b: list[int]) -> int:
    """Positions whose tokens differ; tokens that one side lacks count too."""
    return sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b))


def count_differing_bits(a: list[float], b: list[float]) -> int:
    """Differing bits of the values as float32; a value that one side lacks counts 32."""
    bits = lambda values: struct.unpack(f"<{len(values)}I", struct.pack(f"<{len(values)}f", *values))
    pairs = zip(bits(a), bits(b), strict=False)
    return sum((x ^ y).bit_count() for x, y in pairs) + 32 * abs(len(a) - len(b))


def samplings(options: Options) -> dict[str, SamplingParams]:
    """Parameters by the name of the sampling."""
    from pyspec.engine import SamplingParams

    base = SamplingParams(max_tokens=options.max_tokens, logprobs=0)
    chosen = {"greedy": base} if {"tree", "random"} & set(options.mode) else {}
    if "sampled" in options.mode:
        chosen["T0.7"] = replace(base, temperature=0.7, top_k=50, top_p=0.95)
        chosen["T1.0"] = replace(base, temperature=1.0)
    return chosen


def ways(options: Options) -> list[Way]:
    """Every way of answering that the options ask for."""
    plain = [
        Way(sampling, "off", batch)
        for sampling in samplings(options)
        for batch in options.batch
        if batch > min(options.batch)
    ]
    drafts = {"tree": [("greedy", "suffix")], "random": [("greedy", "random")],
              "sampled": [("T0.7", "suffix"), ("T1.0", "suffix")]}  # fmt: skip
    return plain + [
        Way(sampling, speculation, batch)
        for mode in options.mode for sampling, speculation in drafts[mode] for batch in options.batch
    ]  # fmt: skip


def answer(
    llm: LLM, prompts: list[str | list[int]], params: list[SamplingParams], batch: int
) -> list[Completion]:
    """Answers of all texts, `batch` at a time."""
    done: list[Completion] = []
    for i in range(0, len(prompts), batch):
        done += llm.generate(prompts[i : i + batch], params[i : i + batch])
    return done


def compare(llm: LLM, block: list[Prompt], first: int, options: Options, tallies: dict[Way, Tally]) -> None:
    """Answer one block in every way and add up the differences. `first` is the block's first prompt's number."""
    alone = min(options.batch)
    texts = [llm.chat_prompt([{"role": "user", "content": p.text}]) if p.chat else p.text for p in block]
    for name, base in samplings(options).items():
        seeded = [replace(base, seed=first + i) for i in range(len(texts))]
        plain = answer(llm, texts, [replace(p, speculation="off") for p in seeded], alone)
        for way, tally in tallies.items():
            if way.sampling != name:
                continue
            others = answer(llm, texts, [replace(p, speculation=way.speculation) for p in seeded], way.batch)
            for i, (one, other) in enumerate(zip(plain, others, strict=True)):
                before = tally.differing_tokens + tally.differing_bits
                tally.add(one, other)
                if tally.differing_tokens + tally.differing_bits > before:
                    tqdm.write(f"prompt {first + i} ({block[i].source}): {way.case} differs", file=sys.stderr)


def rows(options: Options) -> Iterator[Row]:
    """Rows for every way; GateError after them if any token or bit differs."""
    if unknown := set(options.mode) - set(MODES):
        raise ValueError(f"equality: mode must be of {'|'.join(MODES)}, got {','.join(sorted(unknown))}")
    from pyspec.engine import LLM

    count = 8 if options.quick else options.prompts
    prompts = list(enumerate(load(options.skip + count)))[options.skip :]
    llm = LLM(options.model, speculation="suffix", max_batch=max(options.batch), max_context=2048)
    tallies = {way: Tally() for way in ways(options)}
    begin = time.monotonic()
    size = max(options.batch)
    try:
        with tqdm(total=len(prompts), unit="prompt", file=sys.stderr) as bar:
            for i in range(0, len(prompts), size):
                block = prompts[i : i + size]
                compare(llm, [prompt for _, prompt in block], block[0][0], options, tallies)
                bar.update(len(block))
                if options.seconds is not None and time.monotonic() - begin > options.seconds:
                    tqdm.write(
                        f"stopped after {bar.n} prompts; go on with --skip {options.skip + bar.n}",
                        file=sys.stderr,
                    )
                    break
    except KeyboardInterrupt:
        print("stopped; the table holds the comparisons that are done", file=sys.stderr)
    for way, tally in tallies.items():
        yield from report(llm.executor_name, way, tally, min(options.batch))
    differing = [way.case for way, t in tallies.items() if t.differing_tokens or t.differing_bits]
    if differing:
        raise GateError(
            f"equality: every answer must equal the plain one, got differences in {', '.join(differing)}"
        )


def report(backend: str, way: Way, tally: Tally, alone: int) -> Iterator[Row]:
    """The rows of one way."""
    figures: list[tuple[str, float, str]] = [("prompts", tally.prompts, "prompts"), ("tokens", tally.tokens, "tokens"),
               ("differing_tokens", tally.differing_tokens, "tokens"),
               ("differing_logprob_bits", tally.differing_bits, "bits")]  # fmt: skip
    if way.speculation != "off" and tally.steps:
        figures.append(("mean_accepted_length", (tally.tokens - tally.prompts) / tally.steps, "tokens/step"))
    for metric, value, unit in figures:
        yield make_row(
            "equality", way.case, backend, metric, value, unit, peer=f"{way.sampling}/plain/batch{alone}"
        )
