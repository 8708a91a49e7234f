# SPDX-License-Identifier: Apache-2.0
"""Equality: the same tokens and the same bits of logprobs with and without speculation, alone and in a batch.

Every prompt is answered plain at the smallest batch size (1: alone) once a temperature; every other way is compared with that. Ways:
`tree` (the suffix tree's drafts) and `random` (trees of random shape and tokens), greedy; `sampled`: the suffix tree's
drafts at temperature 0.7 (with top-k and top-p) and 1.0, one seed a prompt; `turns`: temperatures 0, 0.3, 0.7, 1 and every other
sampling parameter in turn, a setting a prompt, with suffix, n-gram and random trees and with models as drafts (the shipped head, layers of the
model); each at every batch size, and plain at every larger batch size. --all is every mode at batch sizes 1, 8 and 32. Prompts
are done in blocks, so a run that is stopped reports the blocks that it has finished.
"""

from __future__ import annotations

import importlib.util
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .harness import GateError, Options, Row, make_row
from .prompts import Prompt, load

if TYPE_CHECKING:
    from pyspec.engine import LLM, Completion, SamplingParams

MODES = ("tree", "random", "sampled", "turns")
CONTEXT = 2048
# Drafts that need a model of their own beside the target, by name: those of the mode "turns".
MODEL_DRAFTS: dict[str, Any] = {"eagle3": "eagle3", "layers": ("layer_skip", [0, 1, 2, 27, 28, 29])}


@dataclass(frozen=True)
class Way:
    """One way of answering, compared with the plain answer of the same sampling."""

    sampling: str
    speculation: str  # of SamplingParams, or a key of MODEL_DRAFTS
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


def samplings(options: Options) -> dict[str, list[SamplingParams]]:
    """Parameters by the name of the sampling; prompts take those of a list in turn."""
    from pyspec.engine import SamplingParams

    base = SamplingParams(max_tokens=options.max_tokens, logprobs=0)
    chosen = {"greedy": [base]} if {"tree", "random"} & set(options.mode) else {}
    if "sampled" in options.mode:
        chosen["T0.7"] = [replace(base, temperature=0.7, top_k=50, top_p=0.95)]
        chosen["T1.0"] = [replace(base, temperature=1.0)]
    if "turns" in options.mode:
        chosen["turns"] = turns(base)
    return chosen


def turns(base: SamplingParams) -> list[SamplingParams]:
    """Every temperature with every parameter by itself, and all of them together."""
    from pyspec.engine import Grammar

    parameters: list[dict[str, Any]] = [
        {}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.05}, {"typical_p": 0.9}, {"repetition_penalty": 1.2},
        {"presence_penalty": 0.6}, {"frequency_penalty": 0.4}, {"logit_bias": {28: 1.5, 30: -2.0}},
        {"banned_tokens": (28, 29)}, {"min_tokens": base.max_tokens // 2}, {"logprobs": 20},
        {"top_k": 100, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.1, "frequency_penalty": 0.2, "min_tokens": base.max_tokens // 4},
    ]  # fmt: skip
    if importlib.util.find_spec("llguidance"):
        parameters.append({"grammar": Grammar("regex", "[A-Za-z ,.]{40,200}")})
    return [replace(base, temperature=t, **given) for given in parameters for t in (0.0, 0.3, 0.7, 1.0)]


def ways(options: Options) -> list[Way]:
    """Every way of answering that the options ask for."""
    plain = [
        Way(sampling, "off", batch)
        for sampling in samplings(options)
        for batch in options.batch
        if batch > min(options.batch)
    ]
    drafts = {"tree": [("greedy", "suffix")], "random": [("greedy", "random")],
              "sampled": [("T0.7", "suffix"), ("T1.0", "suffix")],
              "turns": [("turns", name) for name in ("suffix", "ngram", "random", *MODEL_DRAFTS)]}  # fmt: skip
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


def prompt_ids(llm: LLM, prompt: Prompt, max_tokens: int) -> list[int]:
    """Tokens of a prompt; of one that is too long for the context with its answer, the last ones."""
    if prompt.chat:
        ids = llm.chat_prompt([{"role": "user", "content": prompt.text}])
    else:
        ids = llm.tokenizer.encode(prompt.text)
    return ids[-(CONTEXT - max_tokens - 1) :]


def compare(
    llms: dict[str, LLM], block: list[Prompt], first: int, options: Options, tallies: dict[Way, Tally]
) -> None:
    """Answer one block in every way and add up the differences. `first` is the block's first prompt's number."""
    alone, llm = min(options.batch), llms[""]
    texts: list[str | list[int]] = [prompt_ids(llm, prompt, options.max_tokens) for prompt in block]
    for name, turn in samplings(options).items():
        seeded = [replace(turn[(first + i) % len(turn)], seed=first + i) for i in range(len(texts))]
        plain = answer(llm, texts, [replace(p, speculation="off") for p in seeded], alone)
        for way, tally in tallies.items():
            if way.sampling != name:
                continue
            if way.speculation in MODEL_DRAFTS:
                others = answer(llms[way.speculation], texts, seeded, way.batch)
            else:
                mode = way.speculation
                others = answer(llm, texts, [replace(p, speculation=mode) for p in seeded], way.batch)
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

    if options.all:
        options = replace(options, mode=MODES, batch=(1, 8, 32))
    count = 8 if options.quick else options.prompts
    prompts = list(enumerate(load(options.skip + count)))[options.skip :]
    size: dict[str, Any] = {"max_batch": max(options.batch), "max_context": CONTEXT}
    llms = {"": LLM(options.model, speculation="suffix", calibrate=False, **size)}
    if "turns" in options.mode:
        for name, draft in MODEL_DRAFTS.items():
            llms[name] = LLM(options.model, speculation="always", draft=draft, calibrate=False, **size)
    tallies = {way: Tally() for way in ways(options)}
    begin = time.monotonic()
    block_size = max(options.batch)
    failure: Exception | None = None
    try:
        with tqdm(total=len(prompts), unit="prompt", file=sys.stderr) as bar:
            for i in range(0, len(prompts), block_size):
                block = prompts[i : i + block_size]
                compare(llms, [prompt for _, prompt in block], block[0][0], options, tallies)
                bar.update(len(block))
                if options.seconds is not None and time.monotonic() - begin > options.seconds:
                    tqdm.write(
                        f"stopped after {bar.n} prompts; go on with --skip {options.skip + bar.n}",
                        file=sys.stderr,
                    )
                    break
    except KeyboardInterrupt:
        print("stopped; the table holds the comparisons that are done", file=sys.stderr)
    except Exception as error:  # hours of comparisons are not lost with the one that failed
        failure = error
    for way, tally in tallies.items():
        yield from report(llms[""].executor_name, way, tally, min(options.batch))
    differing = [way.case for way, t in tallies.items() if t.differing_tokens or t.differing_bits]
    if differing:
        raise GateError(
            f"equality: every answer must equal the plain one, got differences in {', '.join(differing)}"
        ) from failure
    if failure:
        raise failure


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
