# SPDX-License-Identifier: Apache-2.0
"""The suffix index: the reference against its definition, the compiled one against the reference."""

from __future__ import annotations

import re
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyspec.drafts import SuffixDraft, suffix_reference
from pyspec.drafts.suffix import load_host
from pyspec.trees import Drawn, TokenTree

HOST, REASON = load_host()
needs_host = pytest.mark.skipif(HOST is None, reason=REASON)
INDEXES = [
    pytest.param(suffix_reference.SuffixIndex, id="reference"),
    pytest.param(getattr(HOST, "SuffixIndex", None), id="compiled", marks=needs_host),
]
texts = st.lists(st.integers(-1, 3), max_size=60)  # -1 ends a document


def fill(index: Any, text: list[int]) -> Any:
    for token in text:
        if token < 0:
            index.end_document()
        else:
            index.append([token])
    return index


def brute_force(
    text: list[int], root: int, min_match: int, max_match: int, max_depth: int, min_probability: float
) -> dict[tuple[int, ...], float]:
    """Every path of the definition with its probability."""
    context = [*text, root]
    matches = {}
    for end in range(1, len(text) + 1):
        match = 0
        while (
            match < min(end, max_match)
            and text[end - 1 - match] == context[-1 - match]
            and text[end - 1 - match] != -1
        ):
            match += 1
        if match >= min_match:
            matches[end] = match
    found = {(root,): 1.0}

    def follow(path: tuple[int, ...], followers: dict[int, int]) -> None:
        depth = len(path) - 1
        longer = [*text, *path]
        nexts = {end: longer[end + depth] for end in followers if longer[end + depth] != -1}
        weight = {end: min(followers[end] + depth, max_match) ** 2 for end in nexts}
        for token in set(nexts.values()):
            own = {end: followers[end] for end in nexts if nexts[end] == token}
            share = sum(weight[end] for end in own) / (sum(weight.values()) + 8)
            if depth < max_depth and found[path] * share >= min_probability:
                found[(*path, token)] = found[path] * share
                follow((*path, token), own)

    follow((root,), matches)
    return found


@settings(max_examples=200)
@given(texts, st.integers(0, 3), st.integers(1, 10), st.integers(0, 10), st.integers(0, 9), st.data())
def test_proposals_are_the_definition(
    text: list[int], root: int, min_match: int, extra: int, max_depth: int, data: st.DataObject
) -> None:
    max_match, least = min_match + extra, data.draw(st.sampled_from([0.03, 0.1, 0.5]))
    index = fill(suffix_reference.SuffixIndex(min_match, max_match, 4096), text)
    tokens, parents, probability = index.propose(root, 1024, max_depth, least)
    tree = TokenTree(tokens, parents)
    paths = [tuple(tokens[list(tree.path(node))].tolist()) for node in range(len(tree))]
    expected = brute_force(text, root, min_match, max_match, max_depth, least)
    assert dict(zip(paths, probability.tolist(), strict=True)) == {
        path: float(np.float32(value)) for path, value in expected.items()
    }
    assert (np.diff(probability) <= 0).all()
    budget = data.draw(st.integers(1, len(tree)))
    for whole, part in zip(
        (tokens, parents, probability), index.propose(root, budget, max_depth, least), strict=True
    ):
        assert part.tolist() == whole[:budget].tolist()


@needs_host
@settings(max_examples=300)
@given(
    st.lists(st.lists(st.integers(-1, 3), max_size=30), max_size=12),
    st.integers(1, 16),
    st.integers(0, 48),
    st.sampled_from([1, 3, 64]),
    st.sampled_from([16, 17, 40, 1000]),
    st.data(),
)
def test_compiled_index_is_bit_equal(
    chunks: list[list[int]],
    min_match: int,
    extra: int,
    max_candidates: int,
    max_tokens: int,
    data: st.DataObject,
) -> None:
    options = (min_match, min_match + extra, max_candidates, max_tokens)
    both = [suffix_reference.SuffixIndex(*options), HOST.SuffixIndex(*options)]
    for chunk in chunks:
        both = [fill(index if data.draw(st.booleans()) else index.copy(), chunk) for index in both]
        assert len(both[0]) == len(both[1]) <= max_tokens
        arguments = (
            data.draw(st.integers(0, 3)),
            data.draw(st.integers(1, 40)),
            data.draw(st.integers(0, 20)),
            data.draw(st.floats(0, 1)),
        )
        for judge, compiled in zip(*(index.propose(*arguments) for index in both), strict=True):
            assert judge.dtype == compiled.dtype
            assert judge.tobytes() == compiled.tobytes()


@needs_host
def test_compiled_index_is_bit_equal_on_long_text() -> None:
    generator = np.random.default_rng(0)
    phrases = [generator.integers(0, 5000, size).tolist() for size in generator.integers(2, 40, 50)]
    text = [token for i in generator.integers(0, 50, 300) for token in phrases[i]]
    judge, compiled = suffix_reference.SuffixIndex(), HOST.SuffixIndex()
    for begin in range(0, len(text) - 1, 37):
        judge.append(text[begin : begin + 37])
        compiled.append(np.array(text[begin : begin + 37], dtype=np.int32))
        root = text[min(begin + 37, len(text) - 1)]
        for expected, got in zip(judge.propose(root, 64), compiled.propose(root, 64), strict=True):
            assert expected.tobytes() == got.tobytes()


@pytest.mark.parametrize("index_type", INDEXES)
def test_branches_carry_their_counts(index_type: Any) -> None:
    index = fill(index_type(), [1, 2, 3, 9, 1, 2, 4, 8, 1, 2, 3, 7, 1])
    tokens, parents, probability = index.propose(2, 4, 1)
    assert (tokens.tolist(), parents.tolist()) == ([2, 3, 4], [-1, 0, 0])
    three, four = 2 * 2**2, 2**2  # two occurrences and one, each behind the two tokens 1 2
    total = three + four + suffix_reference.ESCAPE
    np.testing.assert_allclose(probability, [1, three / total, four / total], rtol=1e-6)


@pytest.mark.parametrize("index_type", INDEXES)
def test_a_loop_is_drafted_beyond_the_end_of_the_text(index_type: Any) -> None:
    index = fill(index_type(), [9, *[1, 2, 3] * 8])
    tokens, parents, _ = index.propose(1, 30, 32, 0.2)
    assert tokens.tolist() == [1, 2, 3] * 10
    assert parents.tolist() == list(range(-1, 29))


@pytest.mark.parametrize("index_type", INDEXES)
def test_matches_do_not_cross_documents(index_type: Any) -> None:
    assert fill(index_type(min_match=2), [1, -1, 3, 5, -1]).propose(3, 4)[0].tolist() == [3]
    assert fill(index_type(), [3, -1, 5, -1]).propose(3, 4)[0].tolist() == [3]
    tokens, _, probability = fill(index_type(), [-1, 3, 4, 5, -1, 3]).propose(4, 2)
    assert tokens.tolist() == [4, 5]
    assert probability[1] == np.float32(4 / 12)  # two tokens match, once


@pytest.mark.parametrize("index_type", INDEXES)
def test_nothing_known_means_the_root_alone(index_type: Any) -> None:
    for text in ([], [1, 2, 3]):
        assert fill(index_type(), text).propose(7, 10)[0].tolist() == [7]


@pytest.mark.parametrize("index_type", INDEXES)
def test_a_copy_is_independent(index_type: Any) -> None:
    index = fill(index_type(), [1, 2, 3, -1, 1])
    other = index.copy()
    other.append([2, 4, 1])
    assert (len(index), len(other)) == (5, 8)
    assert index.propose(2, 2)[0].tolist() == [2, 3]
    assert set(other.propose(2, 3, 1)[0].tolist()) == {2, 3, 4}


@pytest.mark.parametrize("index_type", INDEXES)
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda new: new(0), "SuffixIndex: min_match must be in [1, 16], got 0"),
        (lambda new: new(4, 3), "SuffixIndex: max_match must be in [4, 64], got 3"),
        (lambda new: new(1, 8, 0), "SuffixIndex: max_candidates must be in [1, 4096], got 0"),
        (lambda new: new(1, 8, 4, 15), "SuffixIndex: max_tokens must be in [16, 1073741824], got 15"),
        (
            lambda new: new().append([1, -2]),
            "SuffixIndex.append: tokens must be in [0, 2**31), got tokens[1] = -2",
        ),
        (
            lambda new: new().append(np.array([-5], dtype=np.int32)),
            "SuffixIndex.append: tokens must be in [0, 2**31), got tokens[0] = -5",
        ),
        (
            lambda new: new().append([2**31]),
            "SuffixIndex.append: tokens must be in [0, 2**31), got tokens[0] = 2147483648",
        ),
        (
            lambda new: new().append(np.zeros((2, 2), dtype=np.int32)),
            "SuffixIndex.append: tokens must be one-dimensional, got 2 dimensions",
        ),
        (lambda new: new().propose(-1, 4), "SuffixIndex.propose: root must be in [0, 2147483647], got -1"),
        (lambda new: new().propose(1, 0), "SuffixIndex.propose: budget must be in [1, 1024], got 0"),
        (lambda new: new().propose(1, 2, -1), "SuffixIndex.propose: max_depth must be in [0, 1024], got -1"),
        (
            lambda new: new().propose(1, 2, 3, float("nan")),
            "SuffixIndex.propose: min_probability must be in [0, 1], got nan",
        ),
    ],
)
def test_bad_arguments_are_refused(index_type: Any, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(index_type)


@pytest.mark.parametrize("index_type", INDEXES)
def test_a_refused_append_appends_nothing(index_type: Any) -> None:
    index = index_type()
    with pytest.raises(ValueError, match="tokens"):
        index.append([1, 2, -1])
    with pytest.raises(TypeError):
        index.append([1.5])
    assert len(index) == 0


@needs_host
def test_threads_may_share_a_compiled_index() -> None:
    index = HOST.SuffixIndex(max_tokens=5000)
    chunk = np.arange(3000, dtype=np.int32)
    threads = [threading.Thread(target=lambda: [index.append(chunk) for _ in range(20)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        tokens, parents, _ = index.propose(7, 16)
        TokenTree(tokens, parents)
    assert 2500 <= len(index) <= 5000


def test_draft_states_are_independent_and_start_from_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    proposals = []
    for forced in ("0", "1"):
        monkeypatch.setenv("PYSPEC_SPEC_ONLY", forced)
        draft = SuffixDraft(references=[[5, 6, 7, 8], [1, 2]], max_depth=3, min_match=2)
        assert draft.compiled == (forced == "0" and HOST is not None)
        expected = "PYSPEC_SPEC_ONLY=1" if forced == "1" else REASON
        assert draft.fallback_reason == expected
        first, second = draft.start([5]), draft.start([9])
        first.extend([6])
        proposals.append((first.propose(7, 8), second.propose(6, 8)))
        assert proposals[-1][0].tree == TokenTree.chain([7, 8])
        assert proposals[-1][0].tree.drawn is Drawn.DETERMINISTIC
        assert len(proposals[-1][1].tree) == 1
    for one, other in zip(*proposals, strict=True):
        assert one.path_probability.tobytes() == other.path_probability.tobytes()


def test_decoding_a_known_text_accepts_most_of_it() -> None:
    generator = np.random.default_rng(1)
    text = generator.integers(0, 1000, 200).tolist()
    state = SuffixDraft().start(text)
    position = steps = 0
    while position < 199:
        proposal = state.propose(text[position], 16)
        node, taken = 0, [text[position]]
        for child in range(1, len(proposal.tree)):
            true = text[(position + len(taken)) % len(text)]
            if proposal.tree.parents[child] == node and proposal.tree.tokens[child] == true:
                node = child
                taken.append(true)
        state.extend(taken)
        position += len(taken)
        steps += 1
    assert steps <= 15  # 200 tokens, 16 a step where all is accepted


def test_bad_drafts_and_tokens_are_refused() -> None:
    for call, error, message in [
        (
            lambda: SuffixDraft(min_probability=2),
            ValueError,
            "SuffixIndex.propose: min_probability must be in [0, 1], got 2",
        ),
        (
            lambda: SuffixDraft(max_match=0),
            ValueError,
            "SuffixIndex: max_match must be in [1, 64], got 0",
        ),
        (
            lambda: SuffixDraft().start([1, -1]),
            ValueError,
            "SuffixState.extend: tokens must be in [0, 2**31), got -1",
        ),
        (
            lambda: SuffixDraft().start([0.5]),  # type: ignore[list-item]
            TypeError,
            "SuffixState.extend: tokens must be integers, got float64",
        ),
    ]:
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            call()
