# SPDX-License-Identifier: Apache-2.0
"""Grammars: which tokens a text that must match a JSON schema, a regular expression or a Lark grammar may go on with.

llguidance (the extra `grammar`) reads the grammar and holds the state of its parser. A state is that of a path of tokens: for a
tree the matcher walks depth first, taking a token on the way down and rolling it back on the way up, so that the mask of a
node is the one that plain decoding would have after the same tokens.
"""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyspec.errors import UnsupportedError
from pyspec.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

KINDS = ("json_schema", "regex", "lark")
MAX_CHARACTERS = 2**16
# llguidance recurses once or more for each level of nested rules, of which MAX_CHARACTERS hold some 9,000; 8 MB serve 1,000 to 3,000.
STACK_BYTES = 256 << 20


@dataclass(frozen=True)
class Grammar:
    """What the whole text of an answer must match. kind: "json_schema" (text is the schema), "regex" (Rust's regular
    expressions, matched as a whole) or "lark" (a context-free grammar in Lark's EBNF, from `start`).

    ValueError for another kind or a text of more than 2^16 characters. Whether the text is a grammar is checked by the model that
    gets the request.
    """

    kind: str
    text: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Grammar: kind must be {'|'.join(KINDS)}, got {self.kind!r}")
        if not isinstance(self.text, str):
            raise TypeError(f"Grammar: text must be a string, got {type(self.text).__name__}")
        if not 0 < len(self.text) <= MAX_CHARACTERS:
            raise ValueError(
                f"Grammar: text must have 1 to {MAX_CHARACTERS} characters, got {len(self.text)}"
            )

    @staticmethod
    def json_schema(schema: str | dict[str, Any] | bool) -> Grammar:
        """JSON that is valid by a schema, given as text or as an object."""
        return Grammar("json_schema", schema if isinstance(schema, str) else json.dumps(schema))

    @staticmethod
    def regex(pattern: str) -> Grammar:
        """Text that a regular expression matches from its first to its last character."""
        return Grammar("regex", pattern)

    @staticmethod
    def lark(grammar: str) -> Grammar:
        """Text of the language of a Lark grammar."""
        return Grammar("lark", grammar)


class GrammarCompiler:
    """Makes matchers over one model's vocabulary.

    UnsupportedError without llguidance; ValueError for a model without an end token, by which a grammar says that it may end.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_tokens: Sequence[int]) -> None:
        if importlib.util.find_spec("llguidance") is None:
            raise UnsupportedError(
                "LLM: grammar needs llguidance, which is not installed: pip install 'pyspec-kernels[grammar]'"
            )
        if not end_tokens:
            raise ValueError("LLM: grammar must have a model with an end token, got one without")
        import llguidance

        self._end_tokens = frozenset(end_tokens)
        self._library = llguidance
        words = _Words(tokenizer, vocab_size, end_tokens[0])
        self._words = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(words), n_vocab=vocab_size, eos_token=list(end_tokens)
        )
        words.greedy = self._words.greedy_tokenize
        self._limits = llguidance.LLParserLimits(verbose_errors=False)

    def state(self, grammar: Grammar) -> GrammarState:
        """A request's state; ValueError as of `matcher`."""
        return GrammarState(self.matcher(grammar), self._end_tokens)

    def matcher(self, grammar: Grammar) -> LLMatcher:
        """A matcher before the first token; ValueError if the text is no grammar or breaks llguidance's limits."""
        made: list[Any] = []  # one: the matcher, or why there is none

        def make() -> None:
            library = self._library.LLMatcher
            try:
                rules = getattr(library, "grammar_from_" + grammar.kind)(grammar.text)
                made.append(library(self._words, rules, log_level=0, limits=self._limits))
            except ValueError as malformed:  # no JSON at all
                made.append(malformed)

        _run_on_large_stack(make)
        (matcher,) = made
        refused = isinstance(matcher, ValueError)
        if error := str(matcher) if refused else matcher.get_error():
            raise ValueError(f"LLM: grammar must be a valid {grammar.kind}, got: {_one_line(error)}")
        return matcher


class _Words:
    """What llguidance asks of a tokenizer: the bytes of every token, and how a text that is forced splits into tokens."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_token: int) -> None:
        self._tokenizer, self.eos_token_id = tokenizer, end_token
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocab_size)]
        self._special = tokenizer.special_ids
        self.special_token_ids = sorted(token for token in self._special if token < vocab_size)
        self.greedy: Callable[[str], list[int]] = lambda text: []

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):  # llguidance asks once whether bytes would do
            raise TypeError(f"grammar: text must be a string, got {type(text).__name__}")
        ids = self._tokenizer.encode(text, add_special=False)
        # Of a text that is written in special tokens the grammar means the letters; and SentencePiece's tokenizers may put a
        # space in front, which it does not have.
        literal = all(token < len(self.tokens) and token not in self._special for token in ids)
        same = literal and b"".join(self.tokens[token] for token in ids) == text.encode()
        return ids if same else self.greedy(text)


class GrammarState:
    """The grammar of one request, in the state of its emitted tokens. `start` is a matcher before the first token.

    A parser that meets llguidance's limits is started anew, so that no draft can spend what the answer needs; `error` is the
    last such message.
    """

    def __init__(self, start: LLMatcher, end_tokens: Collection[int]) -> None:
        self._start, self._end_tokens = start, end_tokens
        self._matcher = start.deep_copy()
        self._emitted: list[int] = []
        self._lost = False  # whether no matcher can follow what is emitted
        self.error: str | None = None

    def sibling(self) -> GrammarState:
        """The same grammar before its first token."""
        return GrammarState(self._start, self._end_tokens)

    def advance(self, token: int) -> bool:
        """Take an emitted token; True if nothing but the end can follow."""
        if not self._take(token, []):
            self._lost = True
            self.error = self.error or f"token {token} was emitted against it"
        self._emitted.append(token)
        return bool(self._matcher.is_stopped()) and not self._lost

    def legal(self, tokens: NDArray[np.int32], parents: NDArray[np.int32]) -> NDArray[np.bool_]:
        """[T] bool: nodes whose path below the root the grammar allows. End tokens are not: nothing behind them is ever emitted."""
        legal = np.zeros(len(tokens), dtype=np.bool_)

        def visit(node: int, path: list[int]) -> None:
            legal[node] = not node or not self._matcher.is_error()

        self._walk(tokens, parents, visit)
        return legal

    def masks(
        self, tokens: NDArray[np.int32], parents: NDArray[np.int32], out: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], int]:
        """Row of `out` [>= T, words] that holds each node's mask, -1 where the grammar refuses its path; and how many rows are used.

        Bit i of word i // 32 is token i. Nodes of equal paths share a row. Where the limits end a mask, it allows nothing.
        """
        rows = np.full(len(tokens), -1, dtype=np.int32)
        made: dict[tuple[int, ...], int] = {}

        def visit(node: int, path: list[int]) -> None:
            key = tuple(path)
            if key not in made:
                made[key] = len(made)
                self._fill(out[made[key]], path)
            rows[node] = made[key]

        seen_all = self._walk(tokens, parents, visit)
        used, unseen = len(made), rows < 0
        if not seen_all and unseen.any():  # given up: the rest must not be accepted
            out[used], rows[unseen] = 0, used
            used += 1
        return rows, used

    def _take(self, token: int, path: list[int]) -> bool:
        """Take a token behind `path`, if need be by a matcher that has seen nothing else; False if refused, or beyond its limits."""
        if self._matcher.try_consume_tokens([token]) == 1:
            return True
        return (
            self._matcher.is_error()
            and self._restart(path)
            and self._matcher.try_consume_tokens([token]) == 1
        )

    def _fill(self, row: NDArray[np.int32], path: list[int]) -> None:
        """The mask behind `path`, likewise."""
        for _ in range(0 if self._lost else 2):
            if not self._matcher.is_error():
                self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
            if not self._matcher.is_error():
                return
            if not self._restart(path):
                break
        row[:] = 0

    def _walk(
        self, tokens: NDArray[np.int32], parents: NDArray[np.int32], visit: Callable[[int, list[int]], None]
    ) -> bool:
        """visit(node, tokens below the root), depth first, with the matcher behind them; not what the grammar refuses, nor what is
        below a node where the matcher fails. False if it has to be given up; else the matcher is behind the root again."""
        children: list[list[int]] = [[] for _ in tokens]
        links, token = parents.tolist(), tokens.tolist()
        for node in range(len(links) - 1, 0, -1):
            children[links[node]].append(node)  # the first is popped first
        path: list[int] = []  # what the matcher has taken below the root
        stack = [(0, 0)]
        while stack:
            node, depth = stack.pop()
            if depth:
                self._rollback(path, depth - 1)
                if token[node] in self._end_tokens:
                    continue
                if not self._take(token[node], path) and not self._matcher.is_error():
                    continue
                path.append(token[node])
            visit(node, path)
            if not self._matcher.is_error():
                stack += [(child, depth + 1) for child in children[node]]
                continue
            del path[-1:]
            if not self._restart(path):
                return False
        self._rollback(path, 0)
        return True

    def _rollback(self, path: list[int], depth: int) -> None:
        if len(path) > depth:
            self._matcher.rollback(len(path) - depth)
            del path[depth:]

    def _restart(self, path: list[int]) -> bool:
        """A new matcher that has taken the emitted tokens and `path`; False if that is beyond the limits too."""
        self.error = _one_line(self._matcher.get_error()) or self.error
        self._matcher = self._start.deep_copy()
        tokens = self._emitted + path
        return int(self._matcher.try_consume_tokens(tokens)) == len(tokens)


def _run_on_large_stack(function: Callable[[], None]) -> None:
    """Call a function that does not raise in a thread with STACK_BYTES, of which memory is only what it touches."""
    before = threading.stack_size(STACK_BYTES)
    try:
        thread = threading.Thread(target=function)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()


def _one_line(message: str) -> str:
    """The first lines of a message of llguidance's, which can quote the whole grammar."""
    return "; ".join(line.strip() for line in message.strip().splitlines())[:300]
