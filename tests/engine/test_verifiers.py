# SPDX-License-Identifier: Apache-2.0
"""LLM(verifier=...): every pair runs or is refused with its reason; greedy answers; the law of sampled ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract_tests import native
from scipy.stats import chisquare

from pyspec.drafts.base import DrawnRows, Proposal
from pyspec.engine import LLM, SamplingParams
from pyspec.engine.drawn import unverifiable
from pyspec.errors import UnsupportedError
from pyspec.trees import VERIFIERS, Drawn, TokenTree
from pyspec.trees.grown_hybrid import GrownHybridPolicy
from pyspec.trees.policy import BestFirstPolicy, StaticPolicy
from pyspec.trees.shapes import parse_shape

pytestmark = pytest.mark.skipif(
    native is None, reason="the specification of a model takes minutes: pyspec._C is missing"
)
PROMPT = [7, 8, 9, 7, 8, 9, 7, 8]
SKIP = ("layer_skip", [0])
POLICIES: dict[str, Any] = {
    **{rule.value: StaticPolicy(parse_shape("2-2"), rule) for rule in Drawn},
    "grown hybrid": GrownHybridPolicy((2, 3)),
    "best first": BestFirstPolicy(max_depth=3, beam=3),
    "chain": StaticPolicy(parse_shape("chain3"), Drawn.WITHOUT_REPLACEMENT),
}
SAMPLED = {"iid", "without_replacement", "hybrid", "grown hybrid", "chain"}


@pytest.fixture(scope="module")
def model(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("llama")


def make(model: Path, verifier: str, policy: str | None = None, **options: Any) -> LLM:
    drafts = {} if policy is None else {"draft": SKIP, "draft_policy": POLICIES[policy]}
    given = {
        "speculation": "always",
        "max_context": 128,
        "max_nodes": 8,
        "calibrate": False,
        "verifier": verifier,
    }
    return LLM(model, **{**given, **drafts, **options})


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("verifier", VERIFIERS)
def test_every_pair_runs_or_is_refused_at_construction(verifier: str, policy: str, model: Path) -> None:
    if verifier == "block" and policy != "chain":
        with pytest.raises(
            UnsupportedError,
            match="^LLM: verifier must be exact for trees .*block verification is for chains",
        ):
            make(model, verifier, policy)
        return
    llm = make(model, verifier, policy)
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    want = make(model, "shared_noise", speculation="off").generate([PROMPT], params)[0].token_ids
    answers = llm.generate([PROMPT, PROMPT[1:]], params)
    assert answers[0].token_ids == want  # at temperature 0 there is one answer
    if verifier != "greedy":
        hot = SamplingParams(
            max_tokens=20, temperature=1.0, seed=3, ignore_eos=True, repetition_penalty=1.2, top_p=0.9
        )
        assert all(len(answer.token_ids) == 20 for answer in llm.generate([PROMPT, PROMPT[1:]], hot))
    assert llm.free_pages == llm.num_pages


@pytest.mark.parametrize("mode", ["suffix", "ngram", "random", "off", "auto"])
@pytest.mark.parametrize("verifier", VERIFIERS)
def test_every_mode_runs_or_is_refused_at_construction(verifier: str, mode: str, model: Path) -> None:
    if verifier == "block" and mode in ("suffix", "random", "auto"):
        with pytest.raises(UnsupportedError, match="block verification is for chains"):
            make(model, verifier, speculation=mode)
        return
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    want = make(model, "shared_noise", speculation="off").generate([PROMPT], params)[0].token_ids
    assert make(model, verifier, speculation=mode).generate([PROMPT], params)[0].token_ids == want


def test_refusals_at_construction_name_their_reason(model: Path) -> None:
    with pytest.raises(
        ValueError,
        match="^LLM: verifier must be shared_noise.greedy.target.block.top_down.traversal, got 'typical'$",
    ):
        make(model, "typical")
    with pytest.raises(
        UnsupportedError,
        match="^LLM: draft must be layer_skip alone, whose children are drawn hybrid, got suffix, layer",
    ):
        make(model, "traversal", "hybrid", draft=["suffix", SKIP])
    with pytest.raises(UnsupportedError, match="^LLM: temperature must be 0 with verifier 'greedy', got 0.5"):
        make(model, "greedy").generate([PROMPT], SamplingParams(temperature=0.5))


def test_a_request_whose_own_mode_breaks_the_verifier_goes_on_plainly(model: Path) -> None:
    llm = make(model, "block", speculation="ngram", max_nodes=16)
    params = SamplingParams(max_tokens=30, ignore_eos=True, speculation="random")
    want = llm.generate([PROMPT], SamplingParams(max_tokens=30, ignore_eos=True))[0].token_ids
    assert llm.generate([PROMPT], params)[0].token_ids == want


def proposal(**changes: Any) -> Proposal:
    tree = TokenTree(
        np.array([1, 2, 3], np.int32), np.array([-1, 0, 0], np.int32), changes.pop("drawn", Drawn.HYBRID)
    )
    given = {"rows": torch.zeros(1, 5), "row_of": np.array([0, -1, -1], np.int32), "temperature": 1.0}
    rows = None if changes.pop("none", False) else DrawnRows(**{**given, **changes})
    return Proposal(tree, np.ones(3, np.float32), rows)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"none": True}, "a tree drawn hybrid must come with the rows it was drawn from, got none"),
        ({"rows": torch.zeros(1, 4)}, "drawn.rows must be float32 [R, 5], got torch.float32 [1, 4]"),
        ({"rows": torch.zeros(1, 5).double()}, "drawn.rows must be float32 [R, 5], got torch.float64 [1, 5]"),
        ({"row_of": np.array([0, -1], np.int32)}, "drawn.row_of must be int32 [3], got int32 [2]"),
        ({"row_of": np.array([1, -1, -1], np.int32)}, "drawn.row_of must be in [-1, 1), got others"),
        ({"row_of": np.array([-1, 0, 0], np.int32)}, "drawn.row_of must be a row above every drawn node, got -1"),
        ({"temperature": float("nan")}, "drawn.temperature must be finite and >= 0, got nan"),
        ({"none": True, "drawn": Drawn.DETERMINISTIC}, ""),
    ],
)  # fmt: skip
def test_what_a_draft_hands_over_is_checked(changes: dict[str, Any], reason: str) -> None:
    assert unverifiable("traversal", proposal(**changes), 5) == reason
    assert unverifiable("shared_noise", proposal(**changes), 5) == ""


@pytest.mark.parametrize(
    ("verifier", "policy"),
    [("traversal", "grown hybrid"), ("block", "chain"), ("top_down", "iid"), ("target", "hybrid")],
)
def test_sampled_answers_have_the_distribution_of_the_target(verifier: str, policy: str, model: Path) -> None:
    """The first three tokens of many requests against the engine's own logprobs: the law is softmax of the three likeliest."""
    llm = make(model, verifier, policy, max_batch=64, max_context=32)
    count, length, keep, heat = 1024, 3, 3, 0.25
    sampled = [
        SamplingParams(
            max_tokens=2 * length + 2, temperature=heat, top_k=keep, seed=seed, logprobs=keep, ignore_eos=True
        )
        for seed in range(count)
    ]
    answers = llm.generate([PROMPT] * count, sampled)
    laws: dict[tuple[int, ...], dict[int, float]] = {}
    for answer in answers:
        assert answer.top_logprobs is not None
        for n, top in enumerate(answer.top_logprobs[:length]):
            laws[tuple(answer.token_ids[:n])] = dict(top)
    found = Counter(tuple(answer.token_ids[:length]) for answer in answers)
    expected: dict[tuple[int, ...], float] = {(): float(count)}
    for _ in range(length):
        expected = {
            (*text, token): mass * np.exp(logprob / heat) / sum(np.exp(value / heat) for value in laws[text].values())
            for text, mass in expected.items() if text in laws
            for token, logprob in laws[text].items()
        }  # fmt: skip
    often = [text for text, mass in expected.items() if mass >= 5]
    rest = [count - sum(values[text] for text in often) for values in (found, expected)]
    observed, wanted = [found[text] for text in often], [expected[text] for text in often]
    assert set(found) <= set(expected)
    assert sum(len(answer.token_ids) - 1 for answer in answers) > 1.1 * sum(
        answer.stats.steps for answer in answers
    )  # drafts helped
    assert chisquare([*observed, rest[0]], [*wanted, rest[1]]).pvalue > 1e-4
