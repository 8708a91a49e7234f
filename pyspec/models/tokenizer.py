# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back, with bytes as the common ground: every token is a fixed string of bytes.

Decoding joins the bytes of tokens and reads them as UTF-8 (each ill-formed sequence becomes U+FFFD), so that
decoding token by token gives the same text as decoding all at once.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import tokenizers

from pyspec.models.fields import require

MAX_FILE_BYTES = 1 << 28  # the largest tokenizer.json in use has 33 MB


@lru_cache(maxsize=1)
def byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: the 256 printable characters by which byte-level BPE writes bytes."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _byte_level(token: str) -> bytes:
    alphabet = byte_alphabet()
    if all(char in alphabet for char in token):
        return bytes(alphabet[char] for char in token)
    return token.encode("utf-8")


def _byte_fallback(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace("\u2581", " ").encode("utf-8")


def _read_decoder(inner: tokenizers.Tokenizer) -> tuple[Callable[[str], bytes], bool]:
    """How tokens spell bytes, and whether decoding drops one leading space."""
    state: dict[str, Any] = (
        json.loads(inner.decoder.__getstate__()) if inner.decoder is not None else {"type": None}
    )
    steps: list[dict[str, Any]] = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _byte_level, False
    if kinds == ["Metaspace"]:
        return _byte_fallback, steps[0].get("prepend_scheme", "always") != "never"
    space = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    ok = kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and steps[0] == space and steps[3:] in ([], [strip])
    require(ok, "decoder", "ByteLevel, Metaspace or SentencePiece's", kinds, "tokenizer")
    return _byte_fallback, len(steps) == 4


class Tokenizer:
    """A tokenizer of the `tokenizers` library with byte-exact decoding; usable from many threads."""

    def __init__(self, inner: tokenizers.Tokenizer, eos_ids: Iterable[int] = ()) -> None:
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self._spell, self._strips_space = _read_decoder(inner)
        added = inner.get_added_tokens_decoder()
        # Byte-level tokenizers write added tokens literally; SentencePiece's spell theirs like any other.
        literal = added.items() if self._spell is _byte_level else ()
        self._bytes = {token: entry.content.encode("utf-8") for token, entry in literal}
        self.special_ids = frozenset(token for token, entry in added.items() if entry.special)
        self.eos_ids = tuple(eos_ids)
        self.vocab_size = inner.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Token ids of a text. Special tokens written out in it are recognised; add_special adds those of the
        model's template (usually the first token of a sequence)."""
        ids: list[int] = self._inner.encode(text, add_special_tokens=add_special).ids
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of some tokens, without special tokens unless `skip_special` is False."""
        stream = StreamDecoder(self, skip_special)
        return "".join([*map(stream.push, ids), stream.finish()])

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to a text; empty for ids without a token (a padded vocabulary)."""
        known = self._bytes.get(token)
        if known is None:
            text = self._inner.id_to_token(token) if 0 <= token < 1 << 32 else None
            known = b"" if text is None else self._spell(text)
            self._bytes[token] = known
        return known

    def token_id(self, text: str) -> int | None:
        """The id of a token by its exact name, such as "<|im_end|>"."""
        token: int | None = self._inner.token_to_id(text)
        return token

    @property
    def strips_leading_space(self) -> bool:
        """Whether the first space of a decoded text belongs to the tokenizer and is dropped."""
        return self._strips_space


class StreamDecoder:
    """Decodes tokens one by one: the pieces of `push`, then `finish`, join to exactly `Tokenizer.decode`.

    A piece never ends inside a UTF-8 character; the bytes wait for the next token.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = tokenizer.special_ids if skip_special else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer.strips_leading_space

    def push(self, token: int) -> str:
        """The text that is certain after one more token; may be empty."""
        if token in self._skip:
            return ""
        return self._stripped(self._utf8.decode(self._tokenizer.token_bytes(token)))

    def finish(self) -> str:
        """The rest: U+FFFD if the last character is incomplete."""
        return self._stripped(self._utf8.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


def tokenizer_from_json(path: str | os.PathLike[str], eos_ids: Iterable[int] = ()) -> Tokenizer:
    """Tokenizer from a `tokenizer.json`. ValueError names the file if it is missing, too large or not one."""
    path = Path(path)
    require(path.is_file(), "tokenizer.json", "a file", str(path), "tokenizer")
    size = path.stat().st_size
    require(size <= MAX_FILE_BYTES, str(path), f"at most {MAX_FILE_BYTES} bytes", size, "tokenizer")
    try:
        inner = tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"tokenizer: {path} must be a tokenizer.json, got {str(error)[:200]}") from None
    return Tokenizer(inner, eos_ids)
