# SPDX-License-Identifier: Apache-2.0
"""Grammars by themselves: a tree's masks are those of fresh matchers on the paths, whatever was walked before."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny import VOCAB_SIZE, tiny_tokenizer

from pyspec import UnsupportedError
from pyspec.engine.grammar import Grammar, GrammarCompiler, GrammarState
from pyspec.models.tokenizer import Tokenizer

END = 257
TOKENIZER = Tokenizer(tiny_tokenizer(), (END,))
WORDS = -(-VOCAB_SIZE // 32)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 4}, "ring": {"type": "boolean"}},
    "required": ["name", "ring"],
    "additionalProperties": False,
}
# Each level doubles the alternatives below it: 2^40 in all.
MULTIPLYING = {
    "$ref": "#/$defs/d0",
    "$defs": {
        **{
            f"d{i}": {
                "allOf": [
                    {"$ref": f"#/$defs/d{i + 1}"},
                    {"oneOf": [{"type": "object", "properties": {f"{x}{i}": {"const": i}}} for x in "pq"]},
                ]
            }
            for i in range(40)
        },
        "d40": {"type": "object"},
    },
}
GRAMMARS = {
    "regex": Grammar.regex(r"(the |in |ring)*[0-9]{2,4}"),
    "json": Grammar.json_schema(SCHEMA),
    "lark": Grammar.lark('start: "(" start* ")" | "thing"'),
}


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    pytest.importorskip("llguidance")
    return GrammarCompiler(TOKENIZER, VOCAB_SIZE, (END,))


def fresh_mask(compiler: GrammarCompiler, grammar: Grammar, tokens: list[int]) -> set[int] | None:
    """What may follow some tokens, by a matcher that has seen nothing else; None if they are not allowed."""
    matcher = compiler.matcher(grammar)
    if matcher.try_consume_tokens(tokens) != len(tokens):
        return None
    return allowed(np.frombuffer(matcher.compute_bitmask(), dtype=np.int32)[:WORDS])


def allowed(mask: NDArray[np.int32]) -> set[int]:
    bits = np.unpackbits(np.ascontiguousarray(mask).view(np.uint8), bitorder="little")[:VOCAB_SIZE]
    return set(bits.nonzero()[0].tolist())


def grown_tree(
    compiler: GrammarCompiler, grammar: Grammar, emitted: list[int], rng: Any, size: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """A tree whose nodes are mostly legal, with siblings of equal tokens, end tokens and illegal ones among them."""
    tokens, parents, paths = [emitted[-1] if emitted else 256], [-1], [list[int]()]
    for node in range(1, size):
        parent = int(rng.integers(0, node))
        choices = fresh_mask(compiler, grammar, emitted + paths[parent]) or set()
        token = (
            int(rng.choice(sorted(choices)))
            if choices and rng.random() < 0.8
            else int(rng.integers(VOCAB_SIZE))
        )
        tokens.append(token)
        parents.append(parent)
        paths.append([*paths[parent], token])
    return np.array(tokens, dtype=np.int32), np.array(parents, dtype=np.int32)


def path_of(tokens: NDArray[np.int32], parents: NDArray[np.int32], node: int) -> list[int]:
    path = []
    while node:
        path.append(int(tokens[node]))
        node = int(parents[node])
    return path[::-1]


@pytest.mark.parametrize("name", sorted(GRAMMARS))
def test_masks_of_a_tree_are_those_of_fresh_matchers_on_its_paths(
    compiler: GrammarCompiler, name: str
) -> None:
    rng, grammar = np.random.default_rng(7), GRAMMARS[name]
    state, emitted = compiler.state(grammar), list[int]()
    seen = {"legal": 0, "illegal": 0, "shared": 0}
    for _ in range(12):
        tokens, parents = grown_tree(compiler, grammar, emitted, rng, 14)
        legal = state.legal(tokens, parents)
        out = np.full((len(tokens), WORDS), -1, dtype=np.int32)
        rows, used = state.masks(tokens, parents, out)
        for node in range(len(tokens)):
            path = path_of(tokens, parents, node)
            want = None if END in path else fresh_mask(compiler, grammar, emitted + path)
            assert bool(legal[node]) == (want is not None)
            assert (rows[node] >= 0) == (want is not None)
            if want is not None:
                assert allowed(out[rows[node]]) == want
        seen["legal"] += int(legal.sum())
        seen["illegal"] += int((~legal).sum())
        seen["shared"] += int(legal.sum()) - used
        choices = sorted((fresh_mask(compiler, grammar, emitted) or set()) - {END})
        token = int(rng.choice(choices))
        emitted.append(token)
        complete = state.advance(token)
        assert complete == (fresh_mask(compiler, grammar, emitted) == {END})
        if complete:
            break
    assert min(seen.values()) > 0, seen  # the tree covered every case


def test_a_finished_grammar_allows_nothing_but_the_end(compiler: GrammarCompiler) -> None:
    state = compiler.state(Grammar.regex("a(b|c)"))
    a, b = TOKENIZER.encode("a", False) + TOKENIZER.encode("b", False)
    assert not state.advance(a)
    assert state.advance(b)
    out = np.full((1, WORDS), -1, dtype=np.int32)
    state.masks(np.array([b], dtype=np.int32), np.array([-1], dtype=np.int32), out)
    assert allowed(out[0]) == {END}


def test_special_tokens_do_not_spell_text(compiler: GrammarCompiler) -> None:
    assert fresh_mask(compiler, Grammar.regex("</s>[a-z]+"), []) == set(TOKENIZER.encode("<", False))


class Spaced(Tokenizer):
    """Puts a space in front of every text, as some of SentencePiece's tokenizers do."""

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        return super().encode(" " + text, add_special)


def test_a_space_that_the_tokenizer_adds_is_not_forced() -> None:
    pytest.importorskip("llguidance")
    spaced = GrammarCompiler(Spaced(tiny_tokenizer(), (END,)), VOCAB_SIZE, (END,))
    first = fresh_mask(spaced, Grammar.regex("the ring"), [])
    assert first is not None
    assert {TOKENIZER.token_bytes(token) for token in first} <= {b"t", b"th", b"the"}


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.regex("a(b"), Grammar.lark("start: nothing"), Grammar.lark("begin: \"a\""), Grammar.json_schema('{"type":'),
        Grammar.json_schema({"type": "nonsense"}), Grammar.json_schema('{"a":' * 4000 + "1" + "}" * 4000),
        Grammar.lark("start: " + "(" * 9000 + '"a"' + ")" * 9000), Grammar.json_schema(MULTIPLYING),
    ],
)  # fmt: skip
def test_what_is_no_grammar_or_explodes_is_refused_in_one_line(
    compiler: GrammarCompiler, grammar: Grammar
) -> None:
    with pytest.raises(ValueError, match=rf"^LLM: grammar must be a valid {grammar.kind}, got: .") as caught:
        compiler.matcher(grammar)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("yacc", "x"), ValueError, "kind must be json_schema|regex|lark, got 'yacc'"),
        (("regex", ""), ValueError, "text must have 1 to 65536 characters, got 0"),
        (("regex", "a" * 65537), ValueError, "text must have 1 to 65536 characters, got 65537"),
        (("regex", 5), TypeError, "text must be a string, got int"),
    ],
)  # fmt: skip
def test_bad_grammars_are_named(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^" + re.escape("Grammar: " + message)):
        Grammar(*arguments)


def test_a_schema_may_be_an_object_or_its_text() -> None:
    assert Grammar.json_schema(SCHEMA) == Grammar.json_schema(json.dumps(SCHEMA))


def test_without_llguidance_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"pip install 'pyspec-kernels\[grammar\]'"):
        GrammarCompiler(TOKENIZER, VOCAB_SIZE, (END,))


def test_a_model_without_end_token_is_refused(compiler: GrammarCompiler) -> None:
    with pytest.raises(ValueError, match="must have a model with an end token"):
        GrammarCompiler(TOKENIZER, VOCAB_SIZE, ())


class Limited:
    """A matcher that meets its limits where `when(tokens taken, calls of its life)` is true."""

    def __init__(self, inner: Any, when: Callable[[list[int], int], bool]) -> None:
        self.inner, self.when, self.taken, self.calls, self.failed = inner, when, list[int](), 0, False

    def try_consume_tokens(self, tokens: list[int]) -> int:
        for i, token in enumerate(tokens):
            if self._fails([*self.taken, token]):
                return i
            if self.inner.try_consume_tokens([token]) != 1:
                return i
            self.taken.append(token)
        return len(tokens)

    def _fails(self, tokens: list[int]) -> bool:
        self.calls += 1
        self.failed = self.failed or self.when(tokens, self.calls)
        return self.failed

    def deep_copy(self) -> Limited:
        return Limited(self.inner.deep_copy(), self.when)

    def rollback(self, count: int) -> bool:
        del self.taken[len(self.taken) - count :]
        return bool(self.inner.rollback(count))

    def is_error(self) -> bool:
        return self.failed

    def get_error(self) -> str:
        return "too complex\n<state>" if self.failed else ""

    def is_stopped(self) -> bool:
        return self.failed or bool(self.inner.is_stopped())

    def unsafe_compute_mask_ptr(self, pointer: int, size: int) -> None:
        if not self._fails(self.taken):
            self.inner.unsafe_compute_mask_ptr(pointer, size)


A, B, C = (TOKENIZER.encode(letter, False)[0] for letter in "abc")
TREE = np.array([A, B, B, C, A, C], dtype=np.int32)  # a: (b: (b: (c)), c: (a))
PARENTS = np.array([-1, 0, 1, 0, 3, 2], dtype=np.int32)


def limited(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch, when: Callable[[list[int], int], bool]
) -> GrammarState:
    make = compiler.matcher
    monkeypatch.setattr(compiler, "matcher", lambda grammar: Limited(make(grammar), when))
    return compiler.state(Grammar.regex("[abc]{20}"))


def masks_of(state: GrammarState, nodes: int = len(TREE)) -> list[set[int] | None]:
    out = np.full((nodes, WORDS), -1, dtype=np.int32)
    rows, used = state.masks(TREE[:nodes], PARENTS[:nodes], out)
    assert max(rows) + 1 == used <= nodes
    return [allowed(out[row]) if row >= 0 else None for row in rows]


def test_limits_met_on_one_path_leave_the_others_alone(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = limited(compiler, monkeypatch, lambda tokens, calls: tokens[-2:] == [B, B])
    state.advance(A)
    letters = {A, B, C}
    assert state.legal(TREE, PARENTS).tolist() == [True, True, False, True, True, False]
    assert masks_of(state) == [letters, letters, set(), letters, letters, None]
    assert state.error == "too complex; <state>"
    assert not state.advance(B)
    assert masks_of(state, 1) == [letters]
    assert not state.advance(B)  # plain decoding meets the limit here
    assert masks_of(state, 1) == [set()]


def test_limits_that_a_matcher_meets_in_time_are_forgotten(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the states that llguidance collects: a new matcher for the same path is far from them."""
    state = limited(compiler, monkeypatch, lambda tokens, calls: calls > 8)
    for emitted in (A, B, C, A):
        state.advance(emitted)
        assert state.legal(TREE, PARENTS).all()
        assert masks_of(state) == [{A, B, C}] * len(TREE)
    assert state.error == "too complex; <state>"
    assert [state.advance(token) for token in (A, B, C, A)] == [False] * 4
    assert masks_of(state, 1) == [set()]  # nine calls are too many for any matcher
    assert not state.advance(A)


def test_a_walk_that_is_given_up_allows_nothing_it_has_not_seen(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = [9]

    def when(tokens: list[int], calls: int) -> bool:
        budget[0] -= 1
        return budget[0] < 0

    state = limited(compiler, monkeypatch, when)
    masks = masks_of(state)
    assert masks[0] == {A, B, C}
    assert set() in masks
    assert None not in masks


def test_a_token_against_the_grammar_ends_it(compiler: GrammarCompiler) -> None:
    state = compiler.state(Grammar.regex("[abc]{8}"))
    state.advance(A)
    assert not state.advance(END)
    assert masks_of(state, 1) == [set()]
    assert state.error == f"token {END} was emitted against it"


def test_deeply_nested_rules_neither_crash_nor_run_away(compiler: GrammarCompiler) -> None:
    rules = "start: a0\n" + "".join(f"a{i}: a{i + 1}?\n" for i in range(4700)) + 'a4700: "x"\n'
    state = compiler.state(Grammar.lark(rules))
    out = np.full((1, WORDS), -1, dtype=np.int32)
    state.masks(np.array([256], dtype=np.int32), np.array([-1], dtype=np.int32), out)
    assert allowed(out[0]) in ({END, *TOKENIZER.encode("x", False)}, set())
    assert (state.error is None) == bool(allowed(out[0]))
