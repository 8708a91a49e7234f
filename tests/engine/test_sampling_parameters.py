# SPDX-License-Identifier: Apache-2.0
"""Every sampling parameter: the same tokens and bits with and without speculation, in any batch; and the tokens that a plain
implementation takes from the raw logits."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import plain_sampling
import pytest
from contract_tests import native
from tiny import VOCAB_SIZE, tiny_tokenizer

from pyspec.drafts.base import Proposal
from pyspec.engine import LLM, Completion, Grammar, SamplingParams
from pyspec.engine.grammar import GrammarCompiler
from pyspec.engine.request import Request
from pyspec.models.tokenizer import Tokenizer
from pyspec.trees import TokenTree

EXECUTOR = "compiled" if native is not None else "spec"
END = 257
TOKENIZER = Tokenizer(tiny_tokenizer(), (END,))
PROMPTS = [[5 + (3 * i * i + i * k) % 40 for i in range(4 + 9 * k)] for k in range(1, 5)]  # 13 to 40 tokens
LETTERS = TOKENIZER.encode("abcd", False)
OPEN, TRUE = (
    Grammar.regex("[abcd]*x"),
    Grammar.json_schema({"type": "object", "properties": {"a": {"type": "boolean"}}}),
)
CASES: dict[str, dict[str, Any]] = {
    "typical": {"temperature": 1.0, "typical_p": 0.4},
    "filters": {"temperature": 0.9, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.8},
    "repetition": {"temperature": 0.8, "repetition_penalty": 1.4, "allowed_tokens": range(40)},
    "encouraged": {"repetition_penalty": 0.5},
    "presence": {"presence_penalty": 1.5, "allowed_tokens": LETTERS},
    "frequency": {"temperature": 0.5, "frequency_penalty": 0.6, "allowed_tokens": LETTERS},
    "negative": {"temperature": 1.0, "frequency_penalty": -0.3, "presence_penalty": -0.5},
    "bias": {"temperature": 1.0, "logit_bias": {7: 5.0, 9: 5.5, 30: -2.0, 31: float("-inf")}},
    "banned": {"temperature": 1.0, "allowed_tokens": range(30), "banned_tokens": range(10, 28)},
    "min_tokens": {"temperature": 1.0, "logit_bias": {END: 5.0, 20: 5.0, 21: 5.0}, "stop_token_ids": [21], "min_tokens": 11},
    "allowed": {"temperature": 1.0, "allowed_tokens": [*range(30), END], "logit_bias": {END: 9.0}, "min_tokens": 6},
    "regex": {"temperature": 1.0, "grammar": OPEN},
    "json": {"temperature": 1.5, "grammar": TRUE, "banned_tokens": TOKENIZER.encode(" \n\t\r", False)},
    "all": {
        "temperature": 0.9, "top_k": 200, "top_p": 0.99, "min_p": 0.001, "typical_p": 0.95, "repetition_penalty": 1.1,
        "presence_penalty": 0.2, "frequency_penalty": 0.1, "logit_bias": {LETTERS[0]: 1.0, END: 9.0},
        "banned_tokens": [LETTERS[3]], "allowed_tokens": [*LETTERS, *TOKENIZER.encode("x", False), END],
        "min_tokens": 5, "grammar": Grammar.regex("[abcd]*x?"), "stop": ["abab"], "seed": 3,
    },
}  # fmt: skip
NEEDS_GRAMMAR = [name for name, case in CASES.items() if "grammar" in case]


def params_of(name: str, **changes: Any) -> SamplingParams:
    if name in NEEDS_GRAMMAR:
        pytest.importorskip("llguidance")
    return SamplingParams(**{"max_tokens": 24, "logprobs": 2, **CASES[name], **changes})


def bits(done: Completion) -> tuple[Any, ...]:
    assert done.logprobs is not None
    packed = [struct.pack("f", p) for p in done.logprobs]
    return done.token_ids, packed, done.top_logprobs, done.text, done.finish_reason, done.error


class Engines:
    """Plain decoding, and engines that speculate in batches and chunks of other sizes; all of one tiny model."""

    def __init__(self, path: Path) -> None:
        make = lambda **options: LLM(path, executor=EXECUTOR, max_context=160, calibrate=False, **options)
        self.plain = make(speculation="off", max_batch=1, max_nodes=128, prefill_chunk=128)
        self.others = [
            make(speculation="suffix", max_batch=3, prefill_chunk=7, max_nodes=24),
            make(speculation="ngram", max_batch=2, prefill_chunk=33, max_nodes=12),
            make(speculation="random", max_batch=5, prefill_chunk=16, max_nodes=24, page_size=48),
            make(speculation="off", max_batch=4, prefill_chunk=5),
        ]

    @property
    def all(self) -> list[LLM]:
        return [self.plain, *self.others]


@pytest.fixture(scope="module")
def engines(tiny_model: Callable[[str], Path]) -> Engines:
    return Engines(tiny_model("llama"))


def foresee(
    monkeypatch: pytest.MonkeyPatch, llm: LLM, answers: dict[tuple[int, int], list[int]]
) -> list[int]:
    """Make an engine draft trees that hold the answer's next tokens among random branches. Returns the accepted lengths' list."""
    rng = np.random.default_rng(1)
    depths: list[int] = []

    def propose(requests: list[Request]) -> dict[Request, Proposal]:
        made = {}
        for request in requests:
            coming = answers[request.prompt_index, request.sample_index][len(request.output) :]
            paths = [coming[: int(rng.integers(0, 7))]]
            for _ in range(4):
                branch = coming[: int(rng.integers(0, 5))] + rng.integers(0, VOCAB_SIZE, 2).tolist()
                paths.insert(int(rng.integers(0, 2)), branch)
            tree = TokenTree.from_paths(request.root, [path for path in paths if path])
            depths.append(len(tree))
            made[request] = Proposal(tree, np.ones(len(tree), dtype=np.float32)).prefix(
                max(1, min(20, request.room))
            )
        return made

    monkeypatch.setattr(llm._speculator, "propose", propose)
    monkeypatch.setattr(llm._speculator, "observe", lambda *args: None)
    return depths


@pytest.mark.skipif(
    native is None, reason="bit equality is the compiled backend's promise: pyspec._C is missing"
)
@pytest.mark.parametrize("name", sorted(CASES))
def test_speculation_batches_and_chunks_change_nothing(
    engines: Engines, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = params_of(name)
    want = [bits(done) for done in engines.plain.generate(PROMPTS, params)]
    for llm in engines.others:
        assert [bits(done) for done in llm.generate(PROMPTS, params)] == want
        assert llm.free_pages == llm.num_pages
    knowing = engines.others[0]
    foresee(monkeypatch, knowing, {(i, 0): tokens for i, (tokens, *_) in enumerate(want)})
    done = knowing.generate(PROMPTS, params)
    assert [bits(completion) for completion in done] == want
    assert sum(completion.stats.steps for completion in done) < 0.7 * sum(len(tokens) for tokens, *_ in want)


def followers(name: str, answers: list[list[int]]) -> dict[tuple[int, ...], Collection[int]] | None:
    """What the case's grammar allows behind every beginning of some answers, by matchers that saw nothing else."""
    if name not in NEEDS_GRAMMAR:
        return None
    compiler, found = GrammarCompiler(TOKENIZER, VOCAB_SIZE, (END,)), {}
    for answer in answers:
        for i in range(len(answer) + 1):
            matcher = compiler.matcher(CASES[name]["grammar"])
            if matcher.try_consume_tokens(answer[:i]) == i:
                mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
                found[tuple(answer[:i])] = np.unpackbits(mask, bitorder="little").nonzero()[0].tolist()
    return found


@pytest.mark.parametrize("name", sorted(CASES))
def test_tokens_are_those_of_a_plain_implementation(engines: Engines, name: str) -> None:
    for params in (
        params_of(name),
        params_of(name, temperature=0.0),
        params_of(name, temperature=1.0, seed=77),
    ):
        done = engines.others[2].generate(PROMPTS, params)
        grammar = followers(name, [completion.token_ids for completion in done])
        for prompt, completion in zip(PROMPTS, done, strict=True):
            plain_sampling.check(engines.plain, prompt, params, completion, grammar)


def test_every_parameter_changes_an_answer(engines: Engines) -> None:
    """The cases above would pass with a parameter that both sides forget."""
    for name, case in CASES.items():
        for parameter in case.keys() - {
            "temperature",
            "seed",
            "top_k",
            "min_p",
            "stop",
            "stop_token_ids",
            "banned_tokens",
        }:
            if name == "all":
                continue
            plainer = {key: value for key, value in case.items() if key != parameter}
            answers = [
                [
                    done.token_ids
                    for done in engines.plain.generate(PROMPTS, SamplingParams(max_tokens=24, **kept))
                ]
                for kept in (case, plainer)
            ]
            assert answers[0] != answers[1], f"{name}: {parameter} changes nothing"


@pytest.mark.skipif(
    native is None, reason="bit equality is the compiled backend's promise: pyspec._C is missing"
)
def test_a_batch_of_different_requests_is_each_of_them_alone(engines: Engines) -> None:
    names = [name for name in sorted(CASES) if name not in NEEDS_GRAMMAR] + NEEDS_GRAMMAR
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(len(names) + 1)]
    each = [*map(params_of, names), SamplingParams(max_tokens=24, logprobs=2, temperature=1.0)]
    want = [bits(engines.plain.generate([p], q)[0]) for p, q in zip(prompts, each, strict=True)]
    for llm in engines.others:
        assert [bits(done) for done in llm.generate(prompts, each)] == want


def test_a_batch_without_edits_calls_nothing(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyspec import ops

    def forbidden(*args: Any) -> None:
        raise AssertionError("edit_logits was called")

    monkeypatch.setattr(ops, "edit_logits", forbidden)
    params = SamplingParams(max_tokens=5, temperature=1.0, typical_p=0.9, stop_token_ids=[END], seed=4)
    assert len(engines.others[0].generate(PROMPTS, params)) == len(PROMPTS)
    with pytest.raises(AssertionError, match="edit_logits was called"):
        engines.others[0].generate(PROMPTS, params_of("presence"))
    assert engines.others[0].free_pages == engines.others[0].num_pages


@pytest.mark.parametrize("name", ["regex", "all"])
def test_texts_match_their_grammar(engines: Engines, name: str) -> None:
    import re

    ended = 0
    for done in engines.others[0].generate(PROMPTS, params_of(name, max_tokens=60, stop=())):
        if done.finish_reason in ("eos", "stop"):
            ended += 1
            assert re.fullmatch(CASES[name]["grammar"].text, done.text)
    assert ended


def test_json_answers_are_json(engines: Engines) -> None:
    import json

    for done in engines.others[1].generate(PROMPTS, params_of("json", max_tokens=60)):
        assert isinstance(json.loads(done.text), dict)
        assert done.finish_reason in ("stop", "eos")
