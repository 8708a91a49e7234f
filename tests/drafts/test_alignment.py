# SPDX-License-Identifier: Apache-2.0
"""Text alignment between tokenizers: the draft follows the text whatever its tokens, and continuations are the target's tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Inner

from pyspec.drafts.alignment import TextAlignment
from pyspec.drafts.base import Proposal
from pyspec.models.tokenizer import Tokenizer
from pyspec.trees import Drawn, TokenTree

SPECIAL = ("<s>", "</s>")


def byte_level(merges: list[tuple[str, str]], special: tuple[str, ...] = SPECIAL) -> Tokenizer:
    """Byte-level BPE with these merges (Ġ is the space); the special tokens come last, the second ends texts."""
    vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for a, b in merges:
        vocab.setdefault(a + b, len(vocab))
    inner = Inner(models.BPE(vocab, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    return Tokenizer(inner, (inner.token_to_id(special[-1]),))


def sentence_piece() -> Tokenizer:
    """SentencePiece's BPE as Llama 2 has it: a space is put before the text, bytes stand in for what is not in the vocabulary."""
    pieces = [
        "\u2581",
        *"abcdefghijklmnopqrstuvwxyz.,",
        "\u2581th",
        "\u2581the",
        "th",
        "in",
        "ing",
        "he",
        "er",
    ]
    vocab = {"<unk>": 0, **{f"<0x{b:02X}>": 1 + b for b in range(256)}}
    for piece in pieces:
        vocab.setdefault(piece, len(vocab))
    merges = [
        ("t", "h"),
        ("\u2581", "th"),
        ("\u2581th", "e"),
        ("i", "n"),
        ("in", "g"),
        ("h", "e"),
        ("e", "r"),
    ]
    inner = Inner(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    inner.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    return Tokenizer(inner, (inner.token_to_id("</s>"),))


TOKENIZERS = {
    "bytes": byte_level([]),
    "english": byte_level([("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("in", "g"), ("Ġ", "a")]),
    "other": byte_level([("h", "e"), ("Ġ", "t"), ("Ġt", "he"), ("n", "g"), ("e", "r"), ("Ã", "©")]),
    "pieces": sentence_piece(),
}
PAIRS = [(a, b) for a in TOKENIZERS for b in TOKENIZERS]
texts = st.text(st.sampled_from("the ing a.,é漢😀\n"), min_size=1, max_size=40)


def spelled(tokenizer: Tokenizer, tokens: list[int]) -> str:
    return tokenizer.decode(tokens)


@pytest.mark.parametrize(("target", "draft"), PAIRS)
@given(text=texts, cuts=st.lists(st.integers(1, 5), min_size=1, max_size=12))
def test_the_draft_follows_the_text(target: str, draft: str, text: str, cuts: list[int]) -> None:
    a, b = TOKENIZERS[target], TOKENIZERS[draft]
    alignment, tokens = TextAlignment(a, b), a.encode(text, add_special=False)
    before: list[int] = []
    at = 0
    for i in range(len(tokens)):
        part = tokens[at : at + cuts[i % len(cuts)]]
        if not part:
            break
        at += len(part)
        kept = alignment.extend(part)
        assert alignment.tokens[:kept] == before[:kept]
        assert kept <= len(before)
        before = list(alignment.tokens)
        so_far = a.decode(tokens[:at])
        assert spelled(b, alignment.tokens) == so_far.rstrip("\ufffd")  # an unfinished character waits
    assert spelled(b, alignment.tokens) == text


@pytest.mark.parametrize("draft", TOKENIZERS)
def test_text_in_one_piece_has_the_tokens_of_the_draft(draft: str) -> None:
    """Where words begin in the same places, tokens are those of the whole text however it came."""
    target, text = TOKENIZERS["bytes"], "the thing the ether in a the thing, other thing."
    alignment = TextAlignment(target, TOKENIZERS[draft])
    for token in target.encode(text, add_special=False):
        alignment.extend([token])
    assert alignment.tokens == TOKENIZERS[draft].encode(text, add_special=False)


def test_only_the_end_is_encoded_anew() -> None:
    target = TOKENIZERS["bytes"]
    alignment = TextAlignment(target, TOKENIZERS["english"])
    alignment.extend(target.encode("the thing " * 50, add_special=False))
    size = len(alignment.tokens)
    assert alignment.extend(target.encode("the", add_special=False)) >= size - 8


def test_special_tokens_stand_for_each_other_by_name() -> None:
    target, draft = TOKENIZERS["english"], byte_level([("a", "b")], ("<x>", "<s>", "<end>"))
    start, end = (target.token_id(name) for name in SPECIAL)
    assert start is not None
    assert end is not None
    alignment = TextAlignment(target, draft)
    alignment.extend([start, *target.encode("ab", add_special=False), end])
    # <s> by its name, </s> as what ends texts
    assert alignment.tokens == [draft.token_id("<s>"), draft.token_id("ab"), draft.token_id("<end>")]
    nameless = TextAlignment(draft, target)
    nameless.extend([draft.token_id("<x>"), draft.token_id("ab")])  # type: ignore[list-item]
    assert nameless.tokens == target.encode("ab", add_special=False)


@pytest.mark.parametrize(("target", "draft"), PAIRS)
@given(text=texts, more=texts)
def test_continuations_spell_what_the_draft_said(target: str, draft: str, text: str, more: str) -> None:
    a, b = TOKENIZERS[target], TOKENIZERS[draft]
    alignment = TextAlignment(a, b)
    context = a.encode(text, add_special=False)
    alignment.extend(context)
    tokens = b.encode(text + more, add_special=False)
    tokens = tokens[len(b.encode(text, add_special=False)) :]
    said = b"".join(map(b.token_bytes, tokens))
    values = np.linspace(0.9, 0.1, len(tokens)).tolist()
    found, probabilities = alignment.continuation(tokens, values)
    assert said.startswith(b"".join(map(a.token_bytes, found)))
    assert len(found) == len(probabilities)
    assert all(x >= y for x, y in zip(probabilities, probabilities[1:], strict=False))
    assert set(probabilities) <= set(values)


def test_continuation_token_by_token() -> None:
    target, draft = TOKENIZERS["english"], TOKENIZERS["other"]
    alignment = TextAlignment(target, draft)
    alignment.extend(target.encode("a thing", add_special=False))
    said = draft.encode(" the thing the", add_special=False)
    found, values = alignment.continuation(said, [0.9 - 0.1 * i for i in range(len(said))])
    assert [target.token_bytes(t) for t in found] == [b" the", b" ", b"th", b"ing"]  # the last word may go on
    pieces = [draft.token_bytes(t) for t in said]
    assert pieces == [b" the", b" t", b"h", b"i", b"ng", b" the"]
    assert values == pytest.approx([0.9, 0.8, 0.7, 0.5])
    end = draft.eos_ids[0]
    found, values = alignment.continuation([*said[:1], end], [0.5, 0.25])
    assert found == [*target.encode(" the", add_special=False), target.eos_ids[0]]
    assert values == [0.5, 0.25]


def test_nothing_is_proposed_within_a_character() -> None:
    target, draft = TOKENIZERS["bytes"], TOKENIZERS["english"]
    alignment = TextAlignment(target, draft)
    character = target.encode("漢", add_special=False)
    alignment.extend([*target.encode("a", add_special=False), *character[:2]])
    assert alignment.tokens == draft.encode("a", add_special=False)
    assert alignment.continuation(draft.encode(" the the", add_special=False), [1.0] * 2) == ([], [])
    alignment.extend(character[2:])
    assert spelled(draft, alignment.tokens) == "a漢"
    # and an unfinished character of the draft is left out
    cut = draft.encode(" a漢", add_special=False)[:-1]
    found, _ = alignment.continuation(cut, [1.0] * len(cut))
    assert b"".join(map(target.token_bytes, found)) == b" "


def test_a_text_that_merges_into_the_last_token_is_encoded_alone() -> None:
    target, draft = TOKENIZERS["english"], TOKENIZERS["bytes"]
    alignment = TextAlignment(target, draft)
    alignment.extend(
        target.encode(" t", add_special=False)
    )  # with "h" it would be another token, which cannot be undone
    found, _ = alignment.continuation(draft.encode("he th", add_special=False), [1.0] * 5)
    assert b"".join(map(target.token_bytes, found)) == b"he "


def test_trees_become_trees_of_the_target() -> None:
    target, draft = TOKENIZERS["english"], TOKENIZERS["other"]
    alignment = TextAlignment(target, draft)
    alignment.extend(target.encode("a", add_special=False))
    root = draft.encode("a", add_special=False)[-1]
    the, ng, h = (draft.token_id(name) for name in ("Ġthe", "ng", "h"))
    #       root - " the" - "ng" - "h"
    #                    \- "h" - "ng"
    tokens = np.array([root, the, ng, h, h, ng], dtype=np.int32)
    parents = np.array([-1, 0, 1, 1, 2, 3], dtype=np.int32)
    probability = np.array([1.0, 0.9, 0.5, 0.4, 0.3, 0.2], dtype=np.float32)
    drafted = Proposal(TokenTree(tokens, parents, Drawn.SHARED_NOISE), probability)
    got = alignment.proposal(7, drafted, 10)
    names = ["a" if p < 0 else target.token_bytes(int(t)).decode() for t, p in zip(got.tree.tokens, got.tree.parents, strict=True)]  # fmt: skip
    assert int(got.tree.tokens[0]) == 7
    assert names == ["a", " the", "n", "g", "h", "n"]
    assert got.tree.parents.tolist() == [-1, 0, 1, 2, 1, 4]
    assert got.tree.drawn is Drawn.DETERMINISTIC  # the target's noise is for its own tokens
    assert got.path_probability.tolist() == pytest.approx([1.0, 0.9, 0.5, 0.5, 0.4, 0.2])
    assert len(alignment.proposal(7, drafted, 3).tree) == 3
    assert len(alignment.proposal(7, Proposal.root(root), 5).tree) == 1
