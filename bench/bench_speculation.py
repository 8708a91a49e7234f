# SPDX-License-Identifier: Apache-2.0
"""Speculation against plain decoding, in turns: HumanEval, GSM8K, MT-bench, copying code and summarising one request at a time, and a
batch of 32.

A prompt is answered in every way, one way after the other, in rounds that begin with another way each time; the tokens must be those
of plain decoding, which is checked before anything is said of time. What is timed is decoding alone, from the first token of the
last request on, in seconds of the clock and of the processor (which others on the machine disturb less). Way: a draft with "auto"
(the planner chooses) or, one request at a time, "always" (all that is proposed; one round, it shows what drafts are worth). Rows:

    ratio, cpu_ratio            tokens a second over plain's: of each prompt the median over rounds, of these the median,
    mean_ratio, least_ratio, ...    the mean and the least; the case mean_of_sets has the means of the three sets
    tokens_a_step, nodes_a_step     the root among them; of one request
    share_draft, share_verify   drafting, building and choosing; sampling, walking, committing, telling drafts (percent of the time);
    share_around, overhead      between the phases; all but the model. Those of plain stand beside them
    accepted_depth_D            how often the walk goes on to depth D ("always")
    ceiling                     plain seconds over those of steps that hold accepted nodes alone, drafted for nothing: what no
                                choice of trees of this draft can exceed, by the cost of steps measured here (case step, step_ms)

--prompts are of each set, --only takes patterns of cases (set/T/batch/draft/mode), --seconds are shared out over the sets.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .bench_equality import CONTEXT, prompt_ids
from .decoding_turns import Answer, Sums, answer, medians, ratios
from .harness import GateError, Options, Row, make_row, measure
from .prompt_classes import CLASSES
from .prompts import SETS, Prompt, load_set

if TYPE_CHECKING:
    from pyspec.engine import LLM

TEMPERATURES = (0.0, 1.0)
COPYING = ("code-copying", "summarising")
MIXED = "mixed"  # the three sets in turn, as one batch
BATCH, BATCH_CONTEXT = 32, 640
ROUNDS = 3
PLAIN = "plain"
DRAFTS: dict[str, Any] = {"suffix": "suffix", "suffix+eagle3": ["suffix", "eagle3"]}
REFERENCE = "suffix"  # whose model decodes plainly
MODES = ("auto", "always")
NODES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32)
MOST_DEPTHS = 8
SHORTEST = 8  # decoded tokens of an answer that is timed
# Metrics of a way beside plain decoding.
AGAINST_PLAIN = (
    "ratio", "cpu_ratio", "mean_ratio", "least_ratio", "least_cpu_ratio", "tokens_a_step", "nodes_a_step",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Groups of prompts that are answered together, at one temperature."""

    name: str
    temperature: float
    batch: int
    groups: tuple[tuple[Prompt, ...], ...]

    def way(self, draft: str, mode: str) -> str:
        return f"{self.name}/T{self.temperature}/batch{self.batch}/{draft}/{mode}"

    def ways(self, options: Options, drafts: list[str]) -> list[tuple[str, str]]:
        """(draft, mode) of every way that is asked for."""
        modes = MODES if self.batch == 1 else MODES[:1]
        every = [(draft, mode) for draft in drafts for mode in modes]
        return [way for way in every if options.wants(self.way(*way))]


def cases(options: Options) -> list[Case]:
    """One request at a time, then the batch; greedy first."""
    count = 1 if options.quick else options.prompts
    sets = {name: load_set(name, count) for name in SETS}
    for name in COPYING:
        sets[name] = [Prompt(name, text, True) for text in CLASSES[name]][:count]
    found = [
        Case(name, temperature, 1, tuple((prompt,) for prompt in prompts))
        for temperature in TEMPERATURES
        for name, prompts in sets.items()
    ]
    size = 2 if options.quick else BATCH
    mixed = [
        prompt for turn in zip(*(load_set(name, size) for name in SETS), strict=False) for prompt in turn
    ]
    return found + [Case(MIXED, t, size, (tuple(mixed[:size]),)) for t in TEMPERATURES]


class Engines:
    """Models by draft and batch, made when they are needed; those of another batch are let go."""

    def __init__(self, model: str) -> None:
        self._model, self._batch = model, 0
        self._made: dict[str, LLM] = {}

    def get(self, draft: str, batch: int) -> LLM:
        """The model with that draft; it has answered a little, so its memory is there."""
        from pyspec.engine import LLM, SamplingParams

        if batch != self._batch:
            self._made, self._batch = {}, batch
        if draft not in self._made:
            context = CONTEXT if batch == 1 else BATCH_CONTEXT
            llm = LLM(
                self._model, draft=DRAFTS[draft], speculation="auto", max_batch=batch, max_context=context
            )
            for mode in ("off", *MODES):
                llm.generate(
                    [[1, 2, 3] * 9], SamplingParams(max_tokens=16, ignore_eos=True, speculation=mode)
                )
            self._made[draft] = llm
        return self._made[draft]


def rows(options: Options) -> Iterator[Row]:
    """Rows of steps, then of each case when it is done; GateError if an answer depends on speculation."""
    began = time.monotonic()
    engines, drafts = Engines(options.model), available(options.model)
    wanted = [case for case in cases(options) if case.ways(options, drafts)]
    backend = engines.get(REFERENCE, 1).executor_name
    costs = step_seconds(engines.get(REFERENCE, 1), 0.02 if options.quick else 0.3)
    for nodes, seconds in costs.items():
        ratio = seconds / costs[1]
        yield make_row("speculation", f"step/nodes{nodes}", backend, "step_ms", 1e3 * seconds, "ms",
                       peer="step/nodes1", ratio=ratio)  # fmt: skip
    means: dict[tuple[float, str, str], list[dict[str, float]]] = {}
    for i, case in enumerate(wanted):
        spent = time.monotonic() - began
        if options.seconds is not None and spent > options.seconds:
            print(f"stopped before {case.name} at T = {case.temperature}", file=sys.stderr)
            return
        share = None if options.seconds is None else (options.seconds - spent) / (len(wanted) - i)
        results, groups = compare(engines, case, case.ways(options, drafts), options, share)
        yield make_row("speculation", case.way(PLAIN, "off"), backend, "groups", groups, "groups")
        for (draft, mode), sums in results.items():
            yield from report(backend, case.way(draft, mode), sums, costs, mode)
            found = means.setdefault((case.temperature, draft, mode), [])
            if case.name in SETS and sums.ratios and mode != "off":
                found.append(speeds(sums.ratios))
                if len(found) == len(SETS):
                    name = f"mean_of_sets/T{case.temperature}/batch1/{draft}/{mode}"
                    for metric in found[0]:
                        mean = statistics.fmean(values[metric] for values in found)
                        yield ratio_row(backend, name, metric, mean)


def available(model: str) -> list[str]:
    """Drafts that there are for the model: the head if one comes with the package."""
    from pyspec.drafts.heads.shipped import shipped
    from pyspec.models.checkpoint import open_checkpoint
    from pyspec.models.fetch import resolve_model

    if shipped(open_checkpoint(resolve_model(model))) is not None:
        return list(DRAFTS)
    print(f"no draft head comes with the package for {model}: its rows are left out", file=sys.stderr)
    return [draft for draft in DRAFTS if "eagle3" not in draft]


def step_seconds(llm: LLM, seconds: float) -> dict[int, float]:
    """Median seconds of the model and its logits by nodes, behind an empty context."""
    ids = [5 + 7 * i for i in range(max(NODES))]
    calls = {str(n): lambda n=n: llm.prompt_logits(ids[:n]) for n in NODES}
    return {int(n): timing.p50 for n, timing in measure(calls, seconds=seconds).items()}


def compare(
    engines: Engines, case: Case, ways: list[tuple[str, str]], options: Options, seconds: float | None
) -> tuple[dict[tuple[str, str], Sums], int]:
    """Answer the groups of a case in every way, until the time is over (at least one); sums of each way, plain's among them, and
    the groups that were timed."""
    from pyspec.engine import SamplingParams

    every = [(PLAIN, "off"), *ways]
    llms = {way: engines.get(REFERENCE if way[0] == PLAIN else way[0], case.batch) for way in every}
    sums = {way: Sums() for way in every}
    tokens = min(options.max_tokens, 32) if options.quick else options.max_tokens
    context = CONTEXT if case.batch == 1 else BATCH_CONTEXT
    timed, began = 0, time.monotonic()
    for number, group in enumerate(case.groups):
        if number and seconds is not None and time.monotonic() - began > seconds:
            break
        texts = [
            prompt_ids(llms[PLAIN, "off"], prompt, tokens)[-(context - tokens - 1) :] for prompt in group
        ]
        found: dict[tuple[str, str], list[Answer]] = {way: [] for way in every}
        for turn in range(1 if options.quick else ROUNDS):
            for draft, mode in every[turn % len(every) :] + every[: turn % len(every)]:
                if mode == "always" and turn:
                    continue
                params = [
                    SamplingParams(temperature=case.temperature, seed=number + i, max_tokens=tokens, speculation=mode)
                    for i in range(len(texts))
                ]  # fmt: skip
                found[draft, mode].append(answer(llms[draft, mode], texts, params))
        right = found[PLAIN, "off"][0].outputs
        for way, answers in found.items():
            if any(one.outputs != right for one in answers):
                raise GateError(
                    f"speculation: tokens must be those of plain decoding, got others from {case.way(*way)}"
                )
        if min(one.tokens for one in found[PLAIN, "off"]) < SHORTEST:
            continue
        timed += 1
        for way, answers in found.items():
            for one in answers:
                sums[way].add(one)
            turns = [ratios(one, plain) for one, plain in zip(answers, found[PLAIN, "off"], strict=False)]
            sums[way].ratios.append(medians(turns))
    return sums, timed


def speeds(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """Median, mean and least of the ratios of single groups, by clock and processor."""
    kinds: dict[str, Callable[[Iterable[float]], float]] = {
        "": statistics.median,
        "mean_": statistics.fmean,
        "least_": min,
    }
    wall_cpu = list(zip(("ratio", "cpu_ratio"), zip(*pairs, strict=True), strict=True))
    return {prefix + name: of(values) for prefix, of in kinds.items() for name, values in wall_cpu}


def ratio_row(backend: str, case: str, metric: str, value: float) -> Row:
    return make_row("speculation", case, backend, metric, value, "x", peer=PLAIN, ratio=value)


def report(backend: str, case: str, sums: Sums, costs: dict[int, float], mode: str) -> Iterator[Row]:
    """Rows of one way; none if no answer was long enough."""
    if not sums.ratios:
        return
    row = lambda metric, value, unit: make_row("speculation", case, backend, metric, value, unit)
    if mode == "off":
        yield row("tokens_per_s", sums.tokens / sums.wall, "tokens/s")
    else:
        for metric, value in speeds(sums.ratios).items():
            yield ratio_row(backend, case, metric, value)
        yield row("tokens_a_step", sums.tokens / sums.steps, "tokens/step")
        yield row("nodes_a_step", 1 + sums.verified / sums.steps, "nodes/step")
    percent = {phase: 100 * seconds / sums.wall for phase, seconds in sums.phases.items()}
    for phase in ("draft", "verify"):
        yield row(f"share_{phase}", percent[phase], "%")
    yield row("share_around", 100 - sum(percent.values()), "%")
    yield row("overhead", 100 - percent["model"], "%")
    if mode == "always":
        for depth, (tried, accepted) in enumerate(sums.depths[:MOST_DEPTHS], start=1):
            if tried:
                yield row(f"accepted_depth_{depth}", accepted / tried, "of tried")
        yield ratio_row(backend, case, "ceiling", sums.ceiling(costs))


def print_rows(rows: list[Row]) -> None:
    """A line for every case, and one for acceptance by depth where there is any."""
    by_case: dict[str, dict[str, float]] = {}
    for row in rows:
        by_case.setdefault(row["case"], {})[row["metric"]] = row["value"]
    names = *AGAINST_PLAIN, "overhead"
    print(f"{'':46}{''.join(f'{name:>16}' for name in (*names, 'ceiling'))}")
    for case, found in by_case.items():
        first = names[0] if names[0] in found else next(iter(found))
        cells = [f"{found[name]:.2f}" if name in found else "" for name in (*names[1:], "ceiling")]
        value = f"{found[first]:.2f}" if first in names else f"{found[first]:.3g} {first}"
        print(f"{case:46}{value:>16}{''.join(f'{cell:>16}' for cell in cells)}")
        depths = [f"{value:.0%}" for name, value in found.items() if name.startswith("accepted_depth")]
        if depths:
            print(f"{'':6}accepted by depth: {', '.join(depths)}")
