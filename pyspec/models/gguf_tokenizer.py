# SPDX-License-Identifier: Apache-2.0
"""Tokenizers from GGUF metadata: byte-level BPE ("gpt2") and SentencePiece's BPE ("llama")."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers import Tokenizer as Inner

from pyspec.models.fields import require
from pyspec.models.tokenizer import Tokenizer

MAX_TOKEN_CHARS = 1024  # longer entries make merge tables quadratic
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)

# How each family cuts text into words before merging (the patterns are part of the models).
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORDS = {"llama-bpe": _CL100K.replace("DIGITS", r"\p{N}{1,3}"), "qwen2": _CL100K.replace("DIGITS", r"\p{N}")}
_SAME = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "gpt2": "gpt-2", "default": "gpt-2"}


def _array(metadata: Mapping[str, Any], key: str, kind: type, length: int | None = None) -> Any:
    name = f"tokenizer.ggml.{key}"
    value: Any = metadata.get(name)
    expected = "an array of strings" if kind is list else "an array of numbers"
    got = None if value is None else type(value).__name__
    require(isinstance(value, kind), name, expected, got, "gguf")
    if length is not None:
        require(len(value) == length, name, f"of length {length}", len(value), "gguf")
    return value


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{key}", default)
    require(isinstance(value, bool), f"tokenizer.ggml.{key}", "a bool", value, "gguf")
    return bool(value)


def _byte_level(metadata: Mapping[str, Any], vocab: dict[str, int], pre: str) -> Inner:
    merges = [tuple(merge.split(" ", 1)) for merge in _array(metadata, "merges", list)]
    odd = next((merge for merge in merges if len(merge) != 2), None)
    require(odd is None, "tokenizer.ggml.merges", "pairs joined by a space", odd, "gguf")
    inner = Inner(models.BPE(vocab, merges, ignore_merges=pre == "llama-bpe"))
    by_regex = pre in _WORDS
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not by_regex)]
    if by_regex:
        steps.insert(0, pre_tokenizers.Split(Regex(_WORDS[pre]), "isolated"))
    elif pre == "smollm":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    inner.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if pre == "qwen2":
        inner.normalizer = normalizers.NFC()
    inner.decoder = decoders.ByteLevel()
    return inner


def _sentence_piece(metadata: Mapping[str, Any], vocab: dict[str, int], types: np.ndarray) -> Inner:
    scores = _array(metadata, "scores", np.ndarray, len(vocab)).tolist()
    normal = types == _NORMAL
    pieces = {piece: scores[i] for piece, i in vocab.items() if normal[i]}
    # SentencePiece merges the pair whose result scores best: a merge list sorted by that score.
    ranked = sorted((-score, vocab[piece], piece) for piece, score in pieces.items() if len(piece) > 1)
    merges = [
        (piece[:cut], piece[cut:])
        for _, _, piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    ok = isinstance(unknown, int) and 0 <= unknown < len(vocab)
    require(ok, "tokenizer.ggml.unknown_token_id", f"in [0, {len(vocab)})", unknown, "gguf")
    fallback = all(f"<0x{byte:02X}>" in vocab for byte in range(256))
    unk_token = next(piece for piece, i in vocab.items() if i == unknown)
    inner = Inner(models.BPE(vocab, merges, unk_token=unk_token, fuse_unk=True, byte_fallback=fallback))
    prefix = _flag(metadata, "add_space_prefix", True)
    spaces = normalizers.Replace(" ", "\u2581")
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces]) if prefix else spaces
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] if prefix else steps)
    return inner


def tokenizer_from_gguf(metadata: Mapping[str, Any], eos_ids: Iterable[int] = ()) -> Tokenizer:
    """Tokenizer from `tokenizer.ggml.*`. ValueError names the key that is missing, odd or unsupported."""
    kind = metadata.get("tokenizer.ggml.model")
    known = kind in ("gpt2", "llama")
    require(known, "tokenizer.ggml.model", "gpt2 or llama", kind, "gguf")
    tokens: list[str] = _array(metadata, "tokens", list)
    types = _array(metadata, "token_type", np.ndarray, len(tokens))
    require(len(tokens) > 0, "tokenizer.ggml.tokens", "non-empty", 0, "gguf")
    longest = max(map(len, tokens))
    rule = f"strings of at most {MAX_TOKEN_CHARS} characters"
    require(longest <= MAX_TOKEN_CHARS, "tokenizer.ggml.tokens", rule, longest, "gguf")
    vocab = {token: i for i, token in enumerate(tokens)}
    require(len(vocab) == len(tokens), "tokenizer.ggml.tokens", "unique", "duplicates", "gguf")
    pre = metadata.get("tokenizer.ggml.pre", "default")
    require(isinstance(pre, str), "tokenizer.ggml.pre", "a string", pre, "gguf")
    try:
        if kind == "gpt2":
            pre = _SAME.get(pre, pre)
            supported = ("gpt-2", "smollm", *_WORDS)
            require(pre in supported, "tokenizer.ggml.pre", f"one of {', '.join(supported)}", pre, "gguf")
            inner = _byte_level(metadata, vocab, pre)
        else:
            inner = _sentence_piece(metadata, vocab, types)
        for special, wanted in ((True, (_CONTROL, _UNKNOWN)), (False, (_USER,))):
            ids = np.flatnonzero(np.isin(types, wanted)).tolist()
            names = [tokens[i] for i in ids if tokens[i]]
            inner.add_tokens([AddedToken(name, special=special, normalized=False) for name in names])
    except ValueError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"gguf: tokenizer.ggml must be consistent, got {str(error)[:200]}") from None
    _add_template(inner, metadata, tokens, default_bos=kind == "llama" or pre == "llama-bpe")
    return Tokenizer(inner, eos_ids)


def _add_template(inner: Inner, metadata: Mapping[str, Any], tokens: list[str], default_bos: bool) -> None:
    parts, special = ["$A"], []
    for name, default in (("bos", default_bos), ("eos", False)):
        if not _flag(metadata, f"add_{name}_token", default):
            continue
        token = metadata.get(f"tokenizer.ggml.{name}_token_id")
        ok = isinstance(token, int) and 0 <= token < len(tokens)
        key = f"tokenizer.ggml.{name}_token_id"
        require(ok, key, f"in [0, {len(tokens)})", token, "gguf")
        assert isinstance(token, int)
        parts.insert(0 if name == "bos" else len(parts), name)
        special.append({"id": name, "ids": [token], "tokens": [tokens[token]]})
    if special:
        inner.post_processor = processors.TemplateProcessing(single=" ".join(parts), special_tokens=special)
