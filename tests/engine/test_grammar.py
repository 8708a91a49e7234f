# SPDX-License-Identifier: Apache-2.0
"""Grammars by themselves: a tree's masks are those of fresh matchers on the paths, whatever was walked before."""

from __future__ import annotations

import importlib.util
import json
import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny import VOCAB_SIZE, tiny_tokenizer

from pyspec import UnsupportedError
from pyspec.engine import grammar as grammar_module
from pyspec.engine.grammar import Grammar, GrammarCompiler
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
    """A matcher that meets its limits when `when(tokens)` is true of what it has taken."""

    def __init__(self, inner: Any, when: Any) -> None:
        self.inner, self.when, self.taken, self.failed = inner, when, list[int](), False

    def try_consume_tokens(self, tokens: list[int]) -> int:
        if self.failed:
            return 0
        for i, token in enumerate(tokens):
            if self.when([*self.taken, token]):
                self.failed = True
                return i
            if self.inner.try_consume_tokens([token]) != 1:
                return i
            self.taken.append(token)
        return len(tokens)

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
        if not self.failed:
            self.inner.unsafe_compute_mask_ptr(pointer, size)


def test_limits_met_on_one_path_leave_the_others_alone(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = (TOKENIZER.encode(letter, False)[0] for letter in "abc")
    make = compiler.matcher
    monkeypatch.setattr(compiler, "matcher", lambda g: Limited(make(g), lambda tokens: tokens[-2:] == [b, b]))
    state = compiler.state(Grammar.regex("[abc]{8}"))
    state.advance(a)
    tokens = np.array([a, b, b, c, a], dtype=np.int32)  # a: (b: (b), c), a
    parents = np.array([-1, 0, 1, 0, 3], dtype=np.int32)
    out = np.full((5, WORDS), -1, dtype=np.int32)
    rows, used = state.masks(tokens, parents, out)
    assert rows.tolist() == [0, 1, -1, 2, 3]
    assert used == 4
    assert all(allowed(row) == {a, b, c} for row in out[:4])
    assert state.error == "too complex; <state>"
    state.advance(b)
    assert not state.advance(b)  # plain decoding meets them here
    rows, used = state.masks(tokens[:1], parents[:1], out)
    assert allowed(out[0]) == set()
    assert grammar_module.KINDS == ("json_schema", "regex", "lark")


def test_deeply_nested_rules_neither_crash_nor_run_away(compiler: GrammarCompiler) -> None:
    rules = "start: a0\n" + "".join(f"a{i}: a{i + 1}?\n" for i in range(4700)) + 'a4700: "x"\n'
    state = compiler.state(Grammar.lark(rules))
    out = np.full((1, WORDS), -1, dtype=np.int32)
    state.masks(np.array([256], dtype=np.int32), np.array([-1], dtype=np.int32), out)
    assert allowed(out[0]) in ({END, *TOKENIZER.encode("x", False)}, set())
    assert (state.error is None) == bool(allowed(out[0]))
