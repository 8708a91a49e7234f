# SPDX-License-Identifier: Apache-2.0
"""Text alignment: a draft model with another tokenizer follows the target's text, and its continuations become target tokens.

The idea of universal assisted generation: bytes are the common ground. What this gives is a guess, as any draft is: the walk
verifies it. Text is re-encoded from a word's beginning a few tokens back, so a step costs what its last words cost. Special tokens
stand for each other by name. Bytes of an unfinished character wait, and there is no proposal until it is complete.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyspec.drafts.base import Proposal
from pyspec.models.tokenizer import Tokenizer
from pyspec.trees import Drawn, TokenTree

TAIL = 4  # tokens before the end that more text may still change, at least
LONGEST_TAIL = 64  # tokens re-encoded where no word begins further back


class TextAlignment:
    """One request's text in the tokens of the draft.

    tokens: the draft's tokens of the text so far, without the bytes of an unfinished character.
    """

    def __init__(self, target: Tokenizer, draft: Tokenizer) -> None:
        self._target, self._draft = target, draft
        self.tokens: list[int] = []
        self._fixed = 0  # tokens before the last special one, itself included: no text merges across it
        self._held = b""  # the beginning of a character
        self._strip = target.strips_leading_space  # the first space is the tokenizer's, not the text's
        self._recent: list[int] = []  # the target's tokens since the last special one, at most LONGEST_TAIL

    @property
    def complete(self) -> bool:
        """Whether the text does not end within a character."""
        return not self._held

    def extend(self, tokens: Sequence[int]) -> int:
        """Follow the target's next tokens; returns how many of the draft's tokens stayed as they were."""
        kept, text = len(self.tokens), b""
        for token in tokens:
            if token not in self._target.special_ids:
                piece = self._target.token_bytes(token)
                text += piece.removeprefix(b" ") if self._strip else piece
                self._strip = self._strip and not piece
                self._recent = [*self._recent[1 - LONGEST_TAIL :], token]
                continue
            kept = min(kept, self._append(text))
            text, self._held, self._recent = b"", b"", []
            twin = _twin(self._target, self._draft, token)
            if twin is not None:
                self.tokens.append(twin)
            self._fixed = len(self.tokens)
        return min(kept, self._append(text))

    def continuation(
        self, tokens: Sequence[int], probabilities: Sequence[float]
    ) -> tuple[list[int], list[float]]:
        """Target tokens of the text that the draft's tokens add, and the probability of the path to each.

        probabilities: of the path to each of `tokens`, never rising. A target token has that of the first draft token that
        completes it. The last one is left out, as more text may change it, unless a special token ends the text.
        """
        if self._held:
            return [], []
        text, ends, last = b"", [], None
        for token in tokens:
            if token in self._draft.special_ids:
                last = _twin(self._draft, self._target, token)
                break
            text += self._draft.token_bytes(token)
            ends.append(len(text))
        found = self._encode(_whole_characters(text))
        if last is None:
            found = found[:-1]
        result, values, reached, place = [], [], 0, 0
        for token in found:
            reached += len(self._target.token_bytes(token))
            while place < len(ends) - 1 and ends[place] < reached:
                place += 1
            result.append(token)
            values.append(float(probabilities[place]))
        if last is not None:
            result.append(last)
            values.append(float(probabilities[len(ends)]))
        return result, values

    def proposal(self, root: int, proposal: Proposal, budget: int) -> Proposal:
        """The draft's tree, whose root stands for the end of the text, as a tree of at most `budget` target tokens below `root`."""
        tree = proposal.tree
        leaves = np.setdiff1d(np.arange(len(tree)), tree.parents)
        nodes: dict[tuple[int, ...], float] = {(): 1.0}
        for leaf in leaves.tolist():
            path = []
            while leaf > 0:
                path.append(leaf)
                leaf = int(tree.parents[leaf])
            path.reverse()
            found, values = self.continuation(
                tree.tokens[path].tolist(), proposal.path_probability[path].tolist()
            )
            for depth, value in enumerate(values):
                prefix = tuple(found[: depth + 1])
                nodes[prefix] = max(nodes.get(prefix, 0.0), value)
        # A prefix is shorter and at least as likely, so it comes before what it begins.
        order = sorted(nodes, key=lambda prefix: (-nodes[prefix], len(prefix)))[:budget]
        place = {prefix: i for i, prefix in enumerate(order)}
        tokens = np.array([prefix[-1] if prefix else root for prefix in order], dtype=np.int32)
        parents = np.array([place[prefix[:-1]] if prefix else -1 for prefix in order], dtype=np.int32)
        probability = np.array([nodes[prefix] for prefix in order], dtype=np.float32)
        return Proposal(TokenTree(tokens, parents, Drawn.DETERMINISTIC), probability)

    def _append(self, text: bytes) -> int:
        """Add text to the draft's tokens; returns how many of them stayed."""
        text = self._held + text
        whole = _whole_characters(text)
        self._held = text[len(whole) :]
        if not whole:
            return len(self.tokens)
        start = _word_start(self._draft, self.tokens, self._fixed)
        old = self.tokens[start:]
        new = _encode(self._draft, _spell(self._draft, old) + whole, at_start=not self.tokens)
        same = next(
            (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))
        )
        self.tokens[start:] = new
        return start + same

    def _encode(self, text: bytes) -> list[int]:
        """Target tokens behind the recent ones that add `text`; none where they cannot."""
        if not text:
            return []
        start = _word_start(self._target, self._recent, 0)
        window = self._recent[start:]
        joined = _encode(self._target, _spell(self._target, window) + text)
        if joined[: len(window)] == window:
            return joined[len(window) :]
        alone = _encode(self._target, text)  # the text would merge with tokens that are there already
        return alone if _spell(self._target, alone) == text else []


def _twin(source: Tokenizer, other: Tokenizer, token: int) -> int | None:
    """The special token of the other tokenizer that has the same name, or ends texts as this one does."""
    twin = other.token_id(source.token_bytes(token).decode("utf-8", "replace"))
    if twin is not None and twin in other.special_ids:
        return twin
    return other.eos_ids[0] if token in source.eos_ids and other.eos_ids else None


def _spell(tokenizer: Tokenizer, tokens: Sequence[int]) -> bytes:
    return b"".join(map(tokenizer.token_bytes, tokens))


def _word_start(tokenizer: Tokenizer, tokens: Sequence[int], first: int) -> int:
    """A place at least TAIL tokens before the end, not before `first`, from which the text can be encoded anew."""
    start = max(first, len(tokens) - TAIL)
    while start > max(first, len(tokens) - LONGEST_TAIL) and not tokenizer.token_bytes(
        tokens[start]
    ).startswith(b" "):
        start -= 1
    return start


def _encode(tokenizer: Tokenizer, text: bytes, at_start: bool = False) -> list[int]:
    """Tokens of text in the middle of a text: a tokenizer that adds a space before what it is given gets the one that is there."""
    if tokenizer.strips_leading_space and not at_start and text.startswith(b" "):
        text = text[1:]
    return tokenizer.encode(text.decode("utf-8", "replace"), add_special=False)


def _whole_characters(text: bytes) -> bytes:
    """`text` without the beginning of a character at its end. Bytes that cannot begin one stay: they are text as they are."""
    for size in range(1, min(3, len(text)) + 1):
        byte = text[-size]
        if byte >= 0xC0:  # a character of 2 to 4 bytes begins here
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return text[:-size] if needed > size and byte < 0xF5 else text
        if byte < 0x80:
            break
    return text
