# SPDX-License-Identifier: Apache-2.0
"""How answers end: inside an accepted path, by several samples, by errors that hurt no one else, and by refusals beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_sampling_parameters import END, EXECUTOR, LETTERS, PROMPTS, bits, foresee
from tiny import tiny_checkpoint

from pyspec import UnsupportedError
from pyspec.drafts.base import PerRequest, Proposal
from pyspec.engine import LLM, Completion, Grammar, SamplingParams
from pyspec.trees import TokenTree

OPEN_END = {"temperature": 1.0, "logprobs": 0, "max_tokens": 24, "allowed_tokens": [*LETTERS, END], "seed": 5}


@pytest.fixture(scope="module")
def llm(tiny_model: Callable[[str], Path]) -> LLM:
    return LLM(
        tiny_model("llama"), executor=EXECUTOR, max_batch=4, max_context=160, max_nodes=24, calibrate=False
    )


def foreseen(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, params: SamplingParams, beyond: SamplingParams
) -> tuple[list[Completion], list[Completion]]:
    """Plain answers, and those with trees that hold what an answer without the ending (`beyond`) goes on with."""
    plain = llm.generate(PROMPTS, replace(params, speculation="off"))
    longer = llm.generate(PROMPTS, replace(beyond, speculation="off"))
    with monkeypatch.context() as patch:
        foresee(patch, llm, {(done.prompt_index, done.sample_index): done.token_ids for done in longer})
        tree = llm.generate(PROMPTS, params)
    assert llm.free_pages == llm.num_pages
    assert any(len(short.token_ids) < len(long.token_ids) for short, long in zip(plain, longer, strict=True))
    return plain, tree


ENDINGS: dict[str, dict[str, Any]] = {
    "eos": {"ignore_eos": False},
    "stop token": {"stop_token_ids": [LETTERS[1]], "min_tokens": 4},
    "stop string": {"stop": ("ca", "bd")},
    "stop string behind min_tokens": {"stop": ("a", "b"), "min_tokens": 7},
    "max_tokens": {"max_tokens": 9},
}


@pytest.mark.parametrize("name", sorted(ENDINGS))
def test_an_ending_inside_an_accepted_path_is_that_of_plain_decoding(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    beyond = SamplingParams(**{**OPEN_END, "ignore_eos": True})
    params = replace(beyond, **ENDINGS[name])
    if params.min_tokens:  # whose mask must not change what comes after
        beyond = replace(beyond, banned_tokens=params.stop_token_ids)
    plain, tree = foreseen(llm, monkeypatch, params, beyond)
    assert [bits(done) for done in tree] == [bits(done) for done in plain]
    want = {"eos": "eos", "max_tokens": "length"}.get(name, "stop")
    assert want in {done.finish_reason for done in plain}
    for done in plain:
        assert len(done.token_ids) > params.min_tokens
        if name == "stop token" and done.finish_reason == "stop":
            assert done.token_ids[-1] == LETTERS[1]
            assert "b" not in done.text
        if params.stop and done.finish_reason == "stop":
            early = "".join(
                chr(ord("a") + LETTERS.index(t)) for t in done.token_ids[: params.min_tokens] if t != END
            )
            assert done.text.startswith(early)
            assert not any(stop in done.text[len(early) :] for stop in params.stop)


def test_a_grammar_ends_a_request_inside_a_path(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance")
    beyond = SamplingParams(temperature=1.0, logprobs=0, max_tokens=24, grammar=Grammar.regex("[abcd]{20}"))
    params = replace(beyond, grammar=Grammar.regex("[abcd]{9}"))
    plain, tree = foreseen(llm, monkeypatch, params, beyond)
    assert [bits(done) for done in tree] == [bits(done) for done in plain]
    assert all((done.finish_reason, len(done.text)) == ("stop", 9) for done in plain)


def test_a_grammar_comes_before_min_tokens(llm: LLM) -> None:
    pytest.importorskip("llguidance")
    params = SamplingParams(max_tokens=24, min_tokens=12, grammar=Grammar.regex("[abcd]{5,6}"))
    done = llm.generate(PROMPTS[0], params)[0]
    assert (done.finish_reason, len(done.text)) == (
        "stop",
        6,
    )  # the end was masked at 5, and nothing follows 6


SAMPLES: list[dict[str, Any]] = [
    {},
    {"presence_penalty": 0.4, "repetition_penalty": 1.3},
    {"grammar": Grammar.regex("[a-z]*")},
]


@pytest.mark.parametrize("more", SAMPLES)
def test_n_samples_are_the_streams_one_by_one(llm: LLM, more: dict[str, Any]) -> None:
    if "grammar" in more:
        pytest.importorskip("llguidance")
    params = SamplingParams(temperature=1.0, max_tokens=12, logprobs=1, seed=9, stream_index=3, **more)
    done = llm.generate(PROMPTS[:2], replace(params, n=5))
    assert [(c.prompt_index, c.sample_index) for c in done] == [(p, s) for p in range(2) for s in range(5)]
    for completion in done:
        alone = replace(params, stream_index=3 + completion.sample_index)
        assert bits(completion) == bits(llm.generate(PROMPTS[completion.prompt_index], alone)[0])
    assert len({tuple(c.token_ids) for c in done}) == 10
    mixed = llm.generate(PROMPTS[:3], [params, replace(params, n=2), params])
    assert [(c.prompt_index, c.sample_index) for c in mixed] == [(0, 0), (1, 0), (1, 1), (2, 0)]
    assert llm.free_pages == llm.num_pages


def test_samples_are_streamed_side_by_side(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=9, logprobs=1, seed=9, n=3, repetition_penalty=1.2)
    chunks = list(llm.stream(PROMPTS[0], params))
    assert [c.sample_index for c in chunks[:4]] == [0, 0, 1, 2]  # the first one computes the prompt
    for want in llm.generate(PROMPTS[0], params):
        mine = [c for c in chunks if c.sample_index == want.sample_index]
        assert [t for c in mine for t in c.token_ids] == want.token_ids
        assert [p for c in mine for p in c.logprobs or ()] == want.logprobs
        assert [p for c in mine for p in c.top_logprobs or ()] == want.top_logprobs
        assert "".join(c.text for c in mine) == want.text
        assert [c.finish_reason for c in mine if c.finish_reason] == [want.finish_reason]
        assert mine[-1].stats is not None


def break_logits(llm: LLM, monkeypatch: pytest.MonkeyPatch, victim: tuple[int, int], at: int) -> None:
    """From the position `at` on, every logit of one request is NaN; of a tree, at the nodes at or behind it."""
    run, batch = llm._executor.run, llm._batch

    def broken() -> None:
        run()
        logits = llm._executor.logits()
        for b, request in enumerate(batch.requests):
            if (request.prompt_index, request.sample_index) == victim:
                for row in range(int(batch.cu_r[b]), int(batch.cu_r[b + 1])):
                    if int(batch.positions[batch.logit_rows[row]]) >= at:
                        logits[row] = torch.nan

    monkeypatch.setattr(llm._executor, "run", broken)


@pytest.mark.parametrize("extra", [{}, {"presence_penalty": 0.5}])
@pytest.mark.parametrize("speculation", ["off", "suffix", "random"])
def test_nan_logits_end_one_request_and_no_other(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, speculation: str, extra: dict[str, Any]
) -> None:
    params = SamplingParams(
        temperature=0.7,
        max_tokens=15,
        logprobs=0,
        n=2,
        speculation=speculation,
        allowed_tokens=range(20),
        **extra,
    )
    want = llm.generate(PROMPTS, params)
    with monkeypatch.context() as patch:
        break_logits(llm, patch, (1, 1), len(PROMPTS[1]) - 1 + 6)  # no law for the seventh token
        done = llm.generate(PROMPTS, params)
        chunks = [c for c in llm.stream(PROMPTS[0], replace(params, n=1)) if c.finish_reason]
    assert [c.finish_reason for c in chunks] == ["length"]
    for got, whole in zip(done, want, strict=True):
        if (got.prompt_index, got.sample_index) == (1, 1):
            assert (got.finish_reason, got.token_ids) == ("error", whole.token_ids[:6])
            assert got.logprobs == (whole.logprobs or [])[:6]
            assert whole.text.startswith(got.text)
            assert got.error is not None
            assert got.error.startswith("no finite logit is left after ")
        else:
            assert bits(got) == bits(whole)
    assert llm.free_pages == llm.num_pages
    assert [bits(c) for c in llm.generate(PROMPTS, params)] == [bits(c) for c in want]


def test_nan_logits_without_edits_and_in_a_stream(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    break_logits(llm, monkeypatch, (0, 0), len(PROMPTS[0]) + 2)
    chunks = list(llm.stream(PROMPTS[0], SamplingParams(max_tokens=9, ignore_eos=True)))
    assert (chunks[-1].finish_reason, chunks[-1].error) == ("error", "the model gave no finite logit")
    assert sum(len(c.token_ids) for c in chunks) == 3
    assert chunks[-1].stats is not None
    assert llm.free_pages == llm.num_pages


def test_pages_that_held_nan_do_no_harm(llm: LLM) -> None:
    params = SamplingParams(max_tokens=12, temperature=0.5, logprobs=0)
    want = [bits(done) for done in llm.generate(PROMPTS, params)]
    llm._cache.k.fill_(torch.nan)
    llm._cache.v.fill_(torch.nan)
    assert [bits(done) for done in llm.generate(PROMPTS, params)] == want


@pytest.mark.parametrize("speculation", ["off", "random"])
def test_a_request_with_nothing_left_ends_with_an_error(llm: LLM, speculation: str) -> None:
    params = SamplingParams(
        max_tokens=8, speculation=speculation, allowed_tokens=LETTERS, banned_tokens=LETTERS, temperature=1.0
    )
    fine = SamplingParams(max_tokens=8, speculation=speculation)
    done = llm.generate(PROMPTS[:3], [fine, params, fine])
    assert [c.finish_reason for c in done] == ["length", "error", "length"]
    assert (done[1].token_ids, done[1].text) == ([], "")
    assert done[1].error == "no finite logit is left after banned_tokens, allowed_tokens"
    assert done[1].stats.output_tokens == 0
    assert llm.free_pages == llm.num_pages


@pytest.mark.parametrize("speculation", ["off", "suffix", "random"])
def test_a_grammar_whose_only_token_is_banned_ends_with_an_error(llm: LLM, speculation: str) -> None:
    pytest.importorskip("llguidance")
    params = SamplingParams(
        max_tokens=8, speculation=speculation, grammar=Grammar.regex("[abc]{3}d"), banned_tokens=[LETTERS[3]]
    )
    done = llm.generate(PROMPTS[0], params)[0]
    assert (done.finish_reason, len(done.text)) == ("error", 3)
    assert done.error == "no finite logit is left after banned_tokens, grammar"


def test_what_a_grammar_refuses_is_no_reason_for_a_larger_tree(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of what is drafted cannot follow: the sizes of trees are chosen, and masks made, without it."""
    pytest.importorskip("llguidance")

    class Guesses:
        def start(self, prompt: Any) -> Any:
            return self

        def extend(self, tokens: Any) -> None:
            """The guesses are the same behind every text."""

        def propose(self, root: int, budget: int) -> Proposal:
            letters = [LETTERS[3], LETTERS[0], LETTERS[1], LETTERS[2] + 40]
            tree = TokenTree([root, *letters, *letters], [-1, 0, 0, 0, 0, 2, 2, 1, 1])
            return Proposal(tree.prefix(budget), np.linspace(1, 0.2, 9, dtype=np.float32)[:budget])

    llm = LLM(
        tiny_model("llama"),
        executor=EXECUTOR,
        draft=PerRequest("guesses", Guesses()),
        max_context=64,
        calibrate=False,
    )
    planner, seen = llm._speculator.planner, []
    choose = planner.choose

    def noted(plans: Any, drafts: Any, proposals: list[Proposal]) -> Any:
        seen.extend(proposal.tree for proposal in proposals if len(proposal.tree) > 1)
        return choose(plans, drafts, proposals)

    monkeypatch.setattr(planner, "choose", noted)
    params = SamplingParams(max_tokens=12, grammar=Grammar.regex("[abc]{12}"), temperature=1.0, logprobs=0)
    done = llm.generate(PROMPTS[0], params)
    assert seen
    assert all(set(tree.tokens[1:].tolist()) <= set(LETTERS[:3]) for tree in seen)
    assert bits(done[0]) == bits(llm.generate(PROMPTS[0], replace(params, speculation="off"))[0])
    assert done[0].stats.drafted_nodes > 0


def test_a_grammar_beyond_the_parser_ends_with_its_reason(llm: LLM) -> None:
    pytest.importorskip("llguidance")
    wide = "start: a0\n" + "".join(f"a{i}: a{i + 1} a{i + 1}?\n" for i in range(1000)) + 'a1000: "x"\n'
    done = llm.generate(
        PROMPTS[:2], [SamplingParams(max_tokens=4, grammar=Grammar.lark(wide)), SamplingParams(max_tokens=4)]
    )
    assert [c.finish_reason for c in done] == ["error", "length"]
    assert "max is 2000" in (done[0].error or "")
    assert llm.free_pages == llm.num_pages


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"logit_bias": {320: 1.0}}, r"logit_bias must have tokens in \[0, 320\), got 320"),
    ({"banned_tokens": [5, 400]}, r"banned_tokens must have tokens in \[0, 320\), got 400"),
    ({"allowed_tokens": {999}}, r"allowed_tokens must have tokens in \[0, 320\), got 999"),
    ({"stop_token_ids": (2**31 - 1,)}, r"stop_token_ids must have tokens in \[0, 320\), got 2147483647"),
    ({"top_k": 321}, r"top_k must be in \[0, 320\], got 321"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_ids_outside_the_vocabulary_are_refused_before_anything_runs(
    llm: LLM, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match="^LLM: " + message):
        llm.generate(PROMPTS[:2], [SamplingParams(max_tokens=3), SamplingParams(max_tokens=3, **options)])
    assert not llm._scheduler.waiting
    assert llm.free_pages == llm.num_pages


def test_a_malformed_grammar_is_refused_before_anything_runs(llm: LLM) -> None:
    pytest.importorskip("llguidance")
    params = [SamplingParams(), SamplingParams(grammar=Grammar.regex("(a"))]
    with pytest.raises(ValueError, match=r"^LLM: grammar must be a valid regex, got: "):
        llm.generate(PROMPTS[:2], params)
    assert llm.free_pages == llm.num_pages


@pytest.mark.parametrize(
    "options",
    [
        {"typical_p": 0.9},
        {"presence_penalty": 0.1},
        {"logit_bias": {3: 1.0}},
        {"min_tokens": 2},
        {"allowed_tokens": [3]},
    ],
)
def test_executors_without_kernels_refuse_before_anything_runs(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    reason = lambda edits, typical: f"no kernel: {edits}, {typical}"
    monkeypatch.setattr(type(llm._executor), "refusal", lambda self, *asked: reason(*asked))
    (name,) = options
    asked = reason("typical_p" not in options, "typical_p" in options)
    with pytest.raises(
        UnsupportedError, match=f" cannot run a request with {name}: {asked}; executor='compiled'"
    ):
        llm.generate(PROMPTS[0], SamplingParams(max_tokens=3, **options))
    assert len(llm.generate(PROMPTS[0], SamplingParams(max_tokens=3, stop_token_ids=[END]))) == 1


def test_a_vocabulary_smaller_than_the_logprobs_asked_for(tmp_path: Path) -> None:
    path = tiny_checkpoint("llama", tmp_path / "small", vocab_size=16, bos_token_id=0, eos_token_id=1)
    small = LLM(path, executor=EXECUTOR, max_context=32, calibrate=False)
    with pytest.raises(ValueError, match=r"^LLM: logprobs must be in \[0, 16\], got 17"):
        small.generate([[2, 3]], SamplingParams(max_tokens=3, logprobs=17))
    done = small.generate([[2, 3]], SamplingParams(max_tokens=3, logprobs=16, ignore_eos=True))[0]
    assert [len(top) for top in done.top_logprobs or ()] == [16] * 3
