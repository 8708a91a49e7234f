# SPDX-License-Identifier: Apache-2.0
"""Every sampling parameter with every verifier and every way of drawing drafts: it runs, nothing that a request forbids comes out,
and a request without a law ends alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import plain_sampling
import pytest
from contract_tests import native
from test_endings import break_logits
from test_sampling_parameters import (
    CASES,
    LETTERS,
    NEEDS_GRAMMAR,
    PROMPTS,
    Engines,
    bits,
    followers,
    params_of,
)
from test_verifiers import make

from pyspec.engine import LLM, SamplingParams
from pyspec.trees import VERIFIERS

pytestmark = pytest.mark.skipif(
    native is None, reason="the specification of a model takes minutes: pyspec._C is missing"
)
PAIRS = [
    (verifier, policy)
    for verifier in VERIFIERS
    for policy in ("iid", "hybrid", "grown hybrid", "best first", "chain", None)  # None: suffix trees
    if verifier != "block" or policy == "chain"
]
NO_LAW = SamplingParams(max_tokens=9, allowed_tokens=LETTERS, banned_tokens=LETTERS)
WALKS = ("shared_noise", "greedy")  # verifiers that take the tokens of plain decoding


@pytest.fixture(scope="module")
def plain(tiny_model: Callable[[str], Path]) -> LLM:
    return Engines(tiny_model("llama")).plain


@pytest.mark.parametrize(("verifier", "policy"), PAIRS)
def test_every_parameter_is_kept_by_every_verifier(
    plain: LLM, tiny_model: Callable[[str], Path], verifier: str, policy: str | None
) -> None:
    llm = make(tiny_model("llama"), verifier, policy, max_batch=6, max_nodes=16, max_context=160)
    heat = {"temperature": 0.0} if verifier == "greedy" else {}
    names = [name for name in CASES if name not in NEEDS_GRAMMAR] + NEEDS_GRAMMAR
    each = [params_of(name, **heat) for name in names]
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(len(names))]
    done = llm.generate(
        [PROMPTS[0], *prompts, PROMPTS[1]], [replace(NO_LAW, temperature=each[0].temperature), *each, each[0]]
    )
    assert done[0].finish_reason == "error"
    assert all(completion.finish_reason != "error" for completion in done[1:])
    for name, prompt, params, completion in zip(names, prompts, each, done[1:], strict=False):
        grammar = followers(name, [completion.token_ids])
        plain_sampling.check(plain, prompt, params, completion, grammar, same_noise=verifier in WALKS)
    if verifier in WALKS:
        want = [bits(plain.generate([p], q)[0]) for p, q in zip(prompts, each, strict=True)]
        assert [bits(completion) for completion in done[1:-1]] == want
    assert llm.free_pages == llm.num_pages


@pytest.mark.parametrize(
    ("verifier", "policy"),
    [("traversal", "hybrid"), ("top_down", "iid"), ("block", "chain"), ("target", None)],
)
def test_nan_logits_end_one_request_alone_under_rejection(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, verifier: str, policy: str | None
) -> None:
    llm = make(tiny_model("llama"), verifier, policy, max_batch=4, max_nodes=16, max_context=160)
    params = SamplingParams(temperature=0.7, max_tokens=15, ignore_eos=True, frequency_penalty=0.1)
    break_logits(llm, monkeypatch, (1, 0), len(PROMPTS[1]) - 1 + 6)
    done = llm.generate(PROMPTS, params)
    assert [c.finish_reason for c in done] == ["length", "error", "length", "length"]
    assert len(done[1].token_ids) == 6
    assert done[1].error == "no finite logit is left after frequency_penalty"
    assert llm.free_pages == llm.num_pages
