# SPDX-License-Identifier: Apache-2.0
"""Drafts in the engine: models and layers change no bit of an answer, however trees grow; drafts that fail harm nobody; pages return."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract_tests import native
from tiny import tiny_checkpoint

from pyspec.drafts.base import Failure, Law, Proposal
from pyspec.drafts.model import ModelDraft
from pyspec.engine import LLM, Completion, SamplingParams
from pyspec.engine.request_draft import MAX_FAILURES
from pyspec.engine.statistics import StepRecord
from pyspec.trees import Drawn, TokenTree
from pyspec.trees.policy import BestFirstPolicy, StaticPolicy, TreePolicy
from pyspec.trees.shapes import parse_shape

pytestmark = pytest.mark.skipif(native is None, reason="bit equality is the compiled backend's promise")
PROMPTS = [[5 + (3 * i * i + i * k) % 40 for i in range(4 + 11 * k)] for k in range(1, 5)]
SAMPLED = {"temperature": 0.8, "seed": 3, "top_k": 60}
SIZES: dict[str, Any] = {"max_context": 128, "calibrate": False, "max_nodes": 12}
POLICIES: dict[str, TreePolicy] = {
    "best first": BestFirstPolicy(max_depth=4, beam=5),
    "without noise": BestFirstPolicy(Drawn.DETERMINISTIC, max_depth=7, beam=2),
    "one branch": BestFirstPolicy(max_depth=5, beam=1),
    "chain": StaticPolicy(parse_shape("chain6")),
    "static": StaticPolicy(parse_shape("3-2-1"), Drawn.SHARED_NOISE),
}
DRAFTS: dict[str, Any] = {
    "layers": ("layer_skip", [1]),
    "layers by name": "layer_skip:0-1",
    "model": "small",
    "merged": ["suffix", "small"],
    "three": ["small", "ngram", ("layer_skip", [0])],
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one layer with the tokenizer of all tiny models."""
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("draft") / "small", num_hidden_layers=1)


def bits(completion: Completion) -> tuple[list[int], list[bytes]]:
    assert completion.logprobs is not None
    return completion.token_ids, [struct.pack("f", p) for p in completion.logprobs]


def answers(llm: LLM, **law: Any) -> list[Completion]:
    done = llm.generate(PROMPTS, SamplingParams(max_tokens=24, logprobs=0, ignore_eos=True, **law))
    check_pages(llm)
    return done


def check_pages(llm: LLM) -> None:
    assert llm.free_pages == llm.num_pages
    for draft in llm._speculator.drafts:
        if isinstance(draft, ModelDraft):
            assert draft.runner.free_pages == draft.runner.num_pages, f"{draft.name} keeps pages"


def named(spec: Any, small: Path) -> Any:
    return (
        [named(part, small) for part in spec]
        if isinstance(spec, list)
        else small
        if spec == "small"
        else spec
    )


@pytest.mark.parametrize("law", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("draft", sorted(DRAFTS))
def test_drafts_change_no_bit(
    draft: str, law: dict[str, Any], small: Path, tiny_model: Callable[[str], Path]
) -> None:
    """Batches, chunks and odd pages: texts of the draft's model end anywhere in a page, and branches copy it."""
    path = tiny_model("llama")
    want = [bits(c) for c in answers(LLM(path, speculation="off", max_batch=1, **SIZES), **law)]
    for mode, options in [
        ("always", {"max_batch": 1, "prefill_chunk": 128}),
        ("always", {"max_batch": 4, "prefill_chunk": 7, "page_size": 5}),
        ("auto", {"max_batch": 3, "page_size": 32}),
        ("random", {"max_batch": 2}),
    ]:
        llm = LLM(path, draft=named(DRAFTS[draft], small), speculation=mode, **options, **SIZES)
        assert [bits(c) for c in answers(llm, **law)] == want, f"{mode} {options}"


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_way_of_growing_changes_no_bit(
    policy: str, small: Path, tiny_model: Callable[[str], Path]
) -> None:
    path = tiny_model("llama")
    for law in ({}, SAMPLED):
        want = [bits(c) for c in answers(LLM(path, speculation="off", **SIZES), **law)]
        llm = LLM(
            path, draft=small, draft_policy=POLICIES[policy], speculation="always", page_size=3, **SIZES
        )
        got = answers(llm, **law)
        assert [bits(c) for c in got] == want
        assert sum(c.stats.drafted_nodes for c in got) > 0


@pytest.mark.parametrize("law", [{}, {"temperature": 1.0, "seed": 5}], ids=["greedy", "sampled"])
def test_the_model_as_its_own_draft_is_right_every_time(
    law: dict[str, Any], tiny_model: Callable[[str], Path]
) -> None:
    """Its logits are the target's and the noise is the verification's, so all but a last node below the root is accepted: a wrong
    position, seed, page or entry would show here."""
    chain = StaticPolicy(parse_shape("chain5"))
    llm = LLM(
        tiny_model("llama"), draft="layer_skip:0-1", draft_policy=chain, speculation="always", page_size=4,
        max_batch=4, max_context=128, max_nodes=6, calibrate=False,
    )  # fmt: skip
    for completion in answers(llm, **law):
        steps = completion.stats.steps
        assert steps == -(-(len(completion.token_ids) - 1) // 6), "some node was rejected"


class Records:
    """All records of a run."""

    def __init__(self) -> None:
        self.all: list[StepRecord] = []

    def record(self, record: StepRecord) -> None:
        self.all.append(record)


@pytest.mark.parametrize("policy", ["best first", "static"])
def test_probabilities_are_those_of_the_text_with_the_path(
    policy: str, tiny_model: Callable[[str], Path]
) -> None:
    """The model as its own draft says of each node what it says of the whole text up to there, in whatever pages branches lie."""
    llm = LLM(
        tiny_model("llama"), draft="layer_skip:0-1", draft_policy=POLICIES[policy], speculation="always", page_size=3,
        max_context=128, max_nodes=12, calibrate=False,
    )  # fmt: skip
    records = Records()
    with llm.observed_by(records):
        (done,) = llm.generate([PROMPTS[0]], SamplingParams(max_tokens=12, ignore_eos=True))
    text, branched = [*PROMPTS[0], *done.token_ids], 0
    for record in records.all:
        tree = TokenTree(record.tokens, record.parents)
        branched += any(len(children) > 1 for children in tree.children)
        for leaf in tree.paths:
            path = [*text[: record.root_position], *record.tokens[list(leaf)].tolist()]
            law = llm.prompt_logits(path).double().log_softmax(1)
            want = np.exp(np.cumsum([float(law[len(path) - len(leaf) + i, record.tokens[node]])
                                     for i, node in enumerate(leaf[1:])]))  # fmt: skip
            assert record.path_probability[list(leaf[1:])] == pytest.approx(want, rel=1e-3)
    assert branched > 0


def test_a_streamed_answer_that_is_left_gives_everything_back(
    small: Path, tiny_model: Callable[[str], Path]
) -> None:
    llm = LLM(tiny_model("llama"), draft=small, speculation="always", **SIZES)
    stream = llm.stream(PROMPTS[0], SamplingParams(max_tokens=30, ignore_eos=True))
    next(stream)
    next(stream)
    draft = llm._speculator.drafts[0]
    assert isinstance(draft, ModelDraft)
    assert draft.runner.free_pages < draft.runner.num_pages
    stream.close()
    check_pages(llm)


def test_ctrl_c_within_a_draft_gives_everything_back(
    small: Path, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(tiny_model("llama"), draft=small, speculation="always", **SIZES)
    draft = llm._speculator.drafts[0]
    assert isinstance(draft, ModelDraft)
    step, calls = draft.runner.step, []

    def interrupted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(draft.runner, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        answers(llm)
    check_pages(llm)
    monkeypatch.undo()
    plain = LLM(tiny_model("llama"), speculation="off", **SIZES)
    assert [bits(c) for c in answers(llm)] == [bits(c) for c in answers(plain)]


class State:
    def __init__(self) -> None:
        self.closed = 0

    def extend(self, tokens: Sequence[int], features: Any = None) -> None:
        assert not self.closed

    def close(self) -> None:
        self.closed += 1


class BadDraft:
    """Proposes what `give` returns for each root."""

    name, taps, levels = "bad", (), 0

    def __init__(self, give: Callable[[int, int], Any]) -> None:
        self.give, self.states, self.calls = give, list[State](), 0

    def start(self, law: Law, max_tokens: int) -> State:
        self.states.append(State())
        return self.states[-1]

    def propose(self, states: Any, roots: Sequence[int], budgets: Sequence[int], min_gain: float = 0) -> Any:
        self.calls += 1
        return [self.give(root, budget) for root, budget in zip(roots, budgets, strict=True)]

    def nbytes(self) -> int:
        return 0


def tree(tokens: Any, parents: Any, probability: Any) -> Proposal:
    """Anything at all as a proposal, unchecked."""
    made = object.__new__(TokenTree)
    made.__dict__.update(tokens=tokens, parents=parents, drawn=Drawn.DETERMINISTIC, pruned=False)
    return Proposal(made, probability)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def raises(root: int, budget: int) -> Any:
    raise RuntimeError("no luck")


BAD: dict[str, tuple[Callable[[int, int], Any], str]] = {
    "raises": (raises, "RuntimeError: no luck"),
    "says why": (lambda r, b: Failure("out of ideas"), "out of ideas"),
    "no proposal": (lambda r, b: None, "proposal must be a Proposal"),
    "wrong root": (lambda r, b: tree(ints(r + 1), ints(-1), floats(1)), "tree must begin with its root"),
    "root with a parent": (lambda r, b: tree(ints(r), ints(0), floats(1)), "tree must begin with its root"),
    "too large": (lambda r, b: tree(ints(*[r] * (b + 1)), ints(*range(-1, b)), floats(*[1] * (b + 1))), "tree must have 1 to"),
    "no node": (lambda r, b: tree(ints(), ints(), floats()), "tree must have 1 to"),
    "wrong dtype": (lambda r, b: tree(ints(r, 1).astype(np.int64), ints(-1, 0), floats(1, 1)), "tokens must be int32"),
    "two dimensions": (lambda r, b: tree(ints(r, 1).reshape(1, 2), ints(-1, 0), floats(1, 1)), "tokens must be int32"),
    "lists": (lambda r, b: tree([r, 1], ints(-1, 0), floats(1, 1)), "tokens must be int32"),
    "too few parents": (lambda r, b: tree(ints(r, 1), ints(-1), floats(1, 1)), "parents must be int32"),
    "probabilities of another length": (lambda r, b: tree(ints(r, 1), ints(-1, 0), floats(1)), "path_probability must be"),
    "token out of range": (lambda r, b: tree(ints(r, 320), ints(-1, 0), floats(1, 1)), "tokens must be in"),
    "negative token": (lambda r, b: tree(ints(r, -1), ints(-1, 0), floats(1, 1)), "tokens must be in"),
    "parent behind its child": (lambda r, b: tree(ints(r, 1, 2), ints(-1, 2, 0), floats(1, 1, 1)), "parents must lie"),
    "two roots": (lambda r, b: tree(ints(r, 1), ints(-1, -1), floats(1, 1)), "parents must lie"),
    "NaN": (lambda r, b: tree(ints(r, 1), ints(-1, 0), floats(1, float("nan"))), "path_probability must be in"),
    "above one": (lambda r, b: tree(ints(r, 1), ints(-1, 0), floats(1, 1.5)), "path_probability must be in"),
    "rising": (lambda r, b: tree(ints(r, 1, 2), ints(-1, 0, 0), floats(1, 0.2, 0.4)), "path_probability must not rise"),
}  # fmt: skip


@pytest.mark.parametrize("mode", ["always", "auto"])
@pytest.mark.parametrize("name", sorted(BAD))
def test_a_draft_that_fails_is_refused_counted_and_switched_off(
    name: str, mode: str, tiny_model: Callable[[str], Path]
) -> None:
    give, reason = BAD[name]
    draft = BadDraft(give)
    want = [bits(c) for c in answers(LLM(tiny_model("llama"), speculation="off", **SIZES), **SAMPLED)]
    llm = LLM(tiny_model("llama"), draft=draft, speculation=mode, **SIZES)
    done = answers(llm, **SAMPLED)
    assert [bits(c) for c in done] == want
    assert all(state.closed for state in draft.states)
    assert any(reason in text for text in llm.statistics().failures), dict(llm.statistics().failures)
    if mode == "always":
        assert draft.calls == MAX_FAILURES  # all four requests run side by side
        for completion in done:
            assert completion.stats.draft_failures == MAX_FAILURES
            (off,) = completion.stats.drafts_off
            assert off.startswith("bad: ")
            assert reason in off


def test_one_failure_now_and_then_switches_nothing_off(tiny_model: Callable[[str], Path]) -> None:
    calls: list[int] = []

    def give(root: int, budget: int) -> Proposal | Failure:
        calls.append(root)
        return Failure("every other time") if len(calls) % 2 else Proposal.root(root)

    llm = LLM(tiny_model("llama"), draft=BadDraft(give), speculation="always", max_batch=1, **SIZES)
    done = answers(llm)
    assert all(c.stats.draft_failures > MAX_FAILURES and not c.stats.drafts_off for c in done)


def test_a_draft_that_cannot_start_or_follow_is_switched_off_at_once(
    tiny_model: Callable[[str], Path],
) -> None:
    class NoStart(BadDraft):
        def start(self, law: Law, max_tokens: int) -> State:
            raise OSError("no room")

    class Deaf(State):
        def extend(self, tokens: Sequence[int], features: Any = None) -> None:
            raise ValueError("not these tokens")

    class NoExtend(BadDraft):
        def start(self, law: Law, max_tokens: int) -> State:
            self.states.append(Deaf())
            return self.states[-1]

    want = [bits(c) for c in answers(LLM(tiny_model("llama"), speculation="off", **SIZES))]
    for kind, reason in ((NoStart, "bad: OSError: no room"), (NoExtend, "bad: ValueError: not these tokens")):
        draft = kind(raises)
        done = answers(LLM(tiny_model("llama"), draft=draft, speculation="always", **SIZES))
        assert [bits(c) for c in done] == want
        assert draft.calls == 0
        assert {c.stats.drafts_off for c in done} == {(reason,)}
        assert all(state.closed for state in draft.states)


def test_a_good_draft_goes_on_beside_a_bad_one(tiny_model: Callable[[str], Path]) -> None:
    llm = LLM(
        tiny_model("llama"), draft=[BadDraft(raises), ("layer_skip", [0, 1])], speculation="always", **SIZES
    )
    plain = LLM(tiny_model("llama"), speculation="off", **SIZES)
    done = answers(llm)
    assert [bits(c) for c in done] == [bits(c) for c in answers(plain)]
    assert all(c.stats.mean_accepted_length > 1.5 for c in done)


def test_a_draft_model_with_a_short_context_stops_there(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    short = tiny_checkpoint("llama-tied", tmp_path / "short", max_position_embeddings=32)
    plain = LLM(tiny_model("llama"), speculation="off", **SIZES)
    llm = LLM(tiny_model("llama"), draft=short, speculation="always", **SIZES)
    done = answers(llm)
    assert [bits(c) for c in done] == [bits(c) for c in answers(plain)]
    assert all("context of 32 tokens is full" in c.stats.drafts_off[0] for c in done)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (3, "LLM: draft must be a name, a path"),
        (["suffix", "suffix"], "LLM: draft must name each draft once"),
        (("layer_skip", [2]), "decoder: layers must ascend within"),
        (("layer_skip", [1, 0]), "decoder: layers must ascend within"),
        (("layer_skip", []), "LLM: draft layers must be integers"),
        (("layer_skip", "ab"), "LLM: draft layers must be integers"),
        ("layer_skip:1-x", "LLM: draft must be like 'layer_skip:"),
    ],
)
def test_bad_drafts_are_refused(spec: Any, message: str, tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=message):
        LLM(tiny_model("llama"), draft=spec, **SIZES)
    with pytest.raises(FileNotFoundError, match="resolve_model: model must be"):
        LLM(tiny_model("llama"), draft="no such model", **SIZES)


def test_layers_share_the_weights_of_the_model(tiny_model: Callable[[str], Path]) -> None:
    plain = LLM(tiny_model("llama"), speculation="off", **SIZES).memory_bytes()
    with_draft = LLM(tiny_model("llama"), draft=("layer_skip", [0]), **SIZES).memory_bytes()
    assert with_draft["weights"] == plain["weights"]
    assert with_draft["drafts"] > 0
