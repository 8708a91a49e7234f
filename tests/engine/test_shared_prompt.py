# SPDX-License-Identifier: Apache-2.0
"""Samples of one prompt share its computation and its pages: the tokens of samples alone, less work, and no page lost however they end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyspec import LLM, SamplingParams
from pyspec.drafts.base import Law, Proposal
from pyspec.engine.kv_pages import PagePool
from pyspec.engine.request import Completion

SAMPLES = 5
PARAMS = SamplingParams(
    temperature=1.0, top_p=0.95, seed=3, max_tokens=10, ignore_eos=True, logprobs=2, repetition_penalty=1.1
)
Model = Callable[[str], Path]


def engine(tiny_model: Model, **options: Any) -> LLM:
    settings = {
        "max_batch": 4,
        "max_nodes": 8,
        "max_context": 64,
        "page_size": 4,
        "prefill_chunk": 6,
        "calibrate": False,
    }
    return LLM(tiny_model("llama"), **(settings | options))


def prompt(length: int) -> list[int]:
    return [3 + (7 * i) % 11 for i in range(length)]


def facts(done: list[Completion]) -> list[tuple[Any, ...]]:
    return [(c.token_ids, c.logprobs, c.top_logprobs, c.finish_reason) for c in done]


def alone(llm: LLM, ids: list[int], params: SamplingParams) -> list[Completion]:
    """The samples as requests of their own, one after another."""
    each = [replace(params, n=1, stream_index=params.stream_index + i) for i in range(params.n)]
    return [llm.generate([ids], one)[0] for one in each]


@pytest.mark.parametrize("speculation", ["off", "suffix", "random"])
@pytest.mark.parametrize("page_size", [4, 16])
def test_tokens_are_those_of_samples_alone(tiny_model: Model, speculation: str, page_size: int) -> None:
    llm = engine(tiny_model, speculation=speculation, page_size=page_size)
    params = replace(PARAMS, n=SAMPLES)
    for length in (1, 2, 4, 5, 6, 7, 8, 9, 16, 17, 18, 23):
        assert facts(llm.generate([prompt(length)], params)) == facts(alone(llm, prompt(length), params)), (
            length
        )
        assert llm.free_pages == llm.num_pages


@pytest.mark.parametrize("executor", ["spec", "auto"])
def test_drafts_with_a_model_know_the_shared_prompt(tiny_model: Model, executor: str) -> None:
    """Layer skip reads tokens, all of which a sample is told of that did not compute them."""
    draft = ("layer_skip", [0, 1])
    llm = engine(tiny_model, speculation="always", draft=draft, executor=executor)
    params = replace(PARAMS, n=3)
    together, single = llm.generate([prompt(13)], params), alone(llm, prompt(13), params)
    assert facts(together) == facts(single)
    assert [c.stats.drafted_nodes for c in together] == [c.stats.drafted_nodes for c in single]
    assert [c.stats.steps for c in together] == [c.stats.steps for c in single]
    assert not any(c.stats.drafts_off or c.stats.draft_failures for c in together)


class Listener:
    """A draft with taps that proposes nothing and notes what each of its states is told."""

    name, taps, levels = "listener", (0, 2), 0

    def __init__(self) -> None:
        self.heard: list[tuple[list[int], list[Tensor]]] = []

    def start(self, law: Law, max_tokens: int) -> Listener.State:
        self.heard.append(([], []))
        return Listener.State(*self.heard[-1])

    class State:
        def __init__(self, tokens: list[int], rows: list[Tensor]) -> None:
            self.tokens, self.rows = tokens, rows

        def extend(self, tokens: Sequence[int], features: Tensor | None = None) -> None:
            assert features is not None
            assert len(features) == len(tokens)
            self.tokens += tokens
            self.rows.append(features.clone())

        def close(self) -> None:
            """Nothing is held."""

    def propose(
        self, states: Any, roots: Sequence[int], budgets: Any, min_gain: float = 0.0
    ) -> list[Proposal]:
        return [Proposal.root(root) for root in roots]

    def nbytes(self) -> int:
        return 0


def test_drafts_with_taps_get_the_features_of_the_shared_prompt(tiny_model: Model) -> None:
    draft = Listener()
    llm = engine(tiny_model, speculation="always", draft=draft, max_batch=3)
    params = replace(PARAMS, n=4)
    for length in (2, 5, 14):
        draft.heard.clear()
        together = llm.generate([prompt(length)], params)
        shared = [(tokens, torch.cat(rows)) for tokens, rows in draft.heard]
        draft.heard.clear()
        assert facts(together) == facts(alone(llm, prompt(length), params))
        for (tokens, rows), (expected, single) in zip(shared, draft.heard, strict=True):
            assert tokens == expected
            assert torch.equal(rows, torch.cat(single))


def test_the_prompt_is_computed_once(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = engine(tiny_model, speculation="off", max_batch=8, max_context=48)
    computed, run = 0, llm._executor.run

    def counted() -> None:
        nonlocal computed
        computed += llm._batch.T
        run()

    monkeypatch.setattr(llm._executor, "run", counted)
    done = llm.generate([prompt(30)], replace(PARAMS, n=SAMPLES, max_tokens=4))
    assert computed == 30 + (SAMPLES - 1) + sum(len(c.token_ids) - 1 for c in done)


def test_shared_pages_are_taken_once(tiny_model: Model) -> None:
    """Pages for the prompt (29 of its 30 tokens: 7 whole pages) once, and of each sample those behind: (30 + 4 + 8) / 4 - 7."""
    llm = engine(tiny_model, speculation="off", max_batch=8, num_pages=7 + SAMPLES * (11 - 7))
    stream = llm.stream(prompt(30), replace(PARAMS, n=SAMPLES, max_tokens=4))
    next(stream)
    while len(llm._scheduler.running) < SAMPLES:
        next(stream)
    assert llm.free_pages == 0
    stream.close()
    assert llm.free_pages == llm.num_pages


def test_other_requests_run_while_samples_wait(tiny_model: Model) -> None:
    llm = engine(tiny_model, speculation="suffix", max_batch=3)
    params = [replace(PARAMS, n=3), replace(PARAMS, seed=9), replace(PARAMS, n=2, seed=4)]
    prompts = [prompt(20), prompt(9)[::-1], prompt(11)[::-1]]
    expected = [c for ids, p in zip(prompts, params, strict=True) for c in alone(llm, ids, p)]
    assert facts(llm.generate(prompts, params)) == facts(expected)
    assert llm.free_pages == llm.num_pages


@pytest.mark.parametrize("max_batch", [1, 2])
@pytest.mark.parametrize("max_tokens", [1, 3])
def test_the_first_sample_may_end_before_the_others_begin(
    tiny_model: Model, max_batch: int, max_tokens: int
) -> None:
    llm = engine(tiny_model, speculation="off", max_batch=max_batch)
    params = replace(PARAMS, n=SAMPLES, max_tokens=max_tokens)
    assert facts(llm.generate([prompt(18)], params)) == facts(alone(llm, prompt(18), params))
    assert llm.free_pages == llm.num_pages


def test_too_few_pages_for_what_is_kept(tiny_model: Model) -> None:
    """Pages for one sample alone: what is kept of the prompt for those that wait must go, or nobody could run."""
    needed = -(-(18 + 3 + 8) // 4)
    llm = engine(tiny_model, speculation="off", max_batch=2, num_pages=needed)
    params = replace(PARAMS, n=3, max_tokens=3)
    done = llm.generate([prompt(18), prompt(17)], params)
    assert facts(done) == facts(alone(llm, prompt(18), params) + alone(llm, prompt(17), params))
    assert llm.free_pages == llm.num_pages


def test_no_page_is_lost_when_a_stream_is_closed(tiny_model: Model) -> None:
    llm = engine(tiny_model, speculation="suffix", max_batch=2)
    for chunks in range(14):
        stream = llm.stream(prompt(15), replace(PARAMS, n=4, max_tokens=4))
        for _ in range(chunks):
            next(stream, None)
        stream.close()
        assert llm.free_pages == llm.num_pages, chunks
        assert not llm._scheduler.running
        assert not llm._scheduler.waiting


def test_no_page_is_lost_by_errors(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that raises, whichever it is: while the prompt is computed, when samples begin, behind it."""
    llm = engine(tiny_model, speculation="suffix", max_batch=3)
    run, left = llm._executor.run, 0

    def fails() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        run()

    monkeypatch.setattr(llm._executor, "run", fails)
    for steps in range(9):
        left = steps
        with pytest.raises(KeyboardInterrupt):
            llm.generate([prompt(17)], replace(PARAMS, n=4))
        assert llm.free_pages == llm.num_pages, steps
    monkeypatch.undo()
    params = replace(PARAMS, n=4)
    assert facts(llm.generate([prompt(17)], params)) == facts(alone(llm, prompt(17), params))


def test_a_sample_that_errs_leaves_the_others(tiny_model: Model) -> None:
    llm = engine(tiny_model, speculation="off", max_batch=2)
    dead = replace(PARAMS, n=3, allowed_tokens=(5,), banned_tokens=(5,), logprobs=None)
    done = llm.generate([prompt(14), prompt(14)], [dead, replace(PARAMS, n=2)])
    assert [c.finish_reason for c in done] == ["error"] * 3 + ["length"] * 2
    assert llm.free_pages == llm.num_pages


def test_a_page_is_free_when_every_owner_gave_it_back() -> None:
    pool = PagePool(4)
    pages = pool.take(3)
    assert pages is not None
    pool.share(pages[:2])
    pool.share(pages[:1])
    pool.give_back(pages)
    assert pool.free_pages == 2
    pool.give_back(pages[:2])
    assert pool.free_pages == 3
    pool.give_back(pages[:1])
    assert pool.free_pages == 4
    with pytest.raises(AssertionError, match="given back twice"):
        pool.give_back(pages[:1])
