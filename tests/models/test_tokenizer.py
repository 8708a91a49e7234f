# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of both formats: known ids, round trips, and streams that equal decoding at once."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import pytest
from tiny import tiny_tokenizer
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, normalizers, pre_tokenizers

from pyspec.models import Checkpoint, StreamDecoder, Tokenizer
from pyspec.models.gguf_checkpoint import GGUFCheckpoint
from pyspec.models.gguf_tokenizer import tokenizer_from_gguf
from pyspec.models.tokenizer import byte_alphabet, tokenizer_from_json

TEXTS = [
    "",
    " ",
    "Hello world",
    "  two leading, two trailing  ",
    "a\n\n\nb\n \n\tc\r\n",
    "12345 + 6.78e9 = ?",
    "I don't know, WE'LL see; it's \u2019fine\u2019",
    "na\u00efve caf\u00e9 \u00df \u0142\u00f3d\u017a",
    "\u65e5\u672c\u8a9e\u30c6\u30ad\u30b9\u30c8 \ud55c\uad6d\uc5b4 \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "\U0001f916\U0001f44d\U0001f3fd\U0001f469\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
    "def f(x):\n    return x**2  # ok\n\n\nclass A:\n\tpass\n",
    "\u00a0no-break\u2003em \u200bzero",
    "\x00\x01\x7f",
    "<b>bold</b> <table> http://x.y/z?q=1&r=2",
    "x" * 300,
    " " * 40 + "\n" * 40 + "\t" * 40,
    "\ufffd replacement \ufffd",
]


@pytest.fixture(scope="session")
def tiny() -> Tokenizer:
    return Tokenizer(tiny_tokenizer(), (257,))


@pytest.fixture(params=["tiny", "smollm2", "gemma3"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    value: Any = request.getfixturevalue(request.param)
    return value if isinstance(value, Tokenizer) else value.tokenizer


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special=False)
    assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special=False) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_round_trip_of_random_text(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    ranges = [(32, 127), (160, 0x600), (0x3000, 0xD7FF), (0x1F300, 0x1FAFF), (9, 14)]
    for _ in range(200):
        text = "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randint(1, 60)))
        assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text


def test_stream_equals_decoding_at_once(tokenizer: Tokenizer) -> None:
    rng = random.Random(1)
    samples = [tokenizer.encode(text) for text in TEXTS]
    samples += [
        [rng.randrange(tokenizer.vocab_size + 9) for _ in range(rng.randint(0, 80))] for _ in range(200)
    ]
    for ids in samples:
        for skip in (True, False):
            stream = StreamDecoder(tokenizer, skip)
            pieces = [stream.push(token) for token in ids]
            assert "".join(pieces) + stream.finish() == tokenizer.decode(ids, skip)


def test_no_piece_holds_half_a_character(tokenizer: Tokenizer) -> None:
    text = "\U0001f916 na\u00efve \u65e5\u672c \U0001fae0\U0001f9ff"
    stream = StreamDecoder(tokenizer)
    pieces = [stream.push(token) for token in tokenizer.encode(text, add_special=False)]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == text
    assert stream.finish() == ""


def test_decoding_matches_the_library(tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        ids = tokenizer.encode(text)
        for skip in (True, False):
            assert tokenizer.decode(ids, skip) == tokenizer._inner.decode(ids, skip_special_tokens=skip)


def test_incomplete_character_at_the_end(tiny: Tokenizer) -> None:
    ids = tiny.encode("\u00e9", add_special=False)[:1]
    stream = StreamDecoder(tiny)
    assert (stream.push(ids[0]), stream.finish()) == ("", "\ufffd")
    assert tiny.decode(ids) == "\ufffd"


def test_special_tokens(tiny: Tokenizer) -> None:
    assert tiny.encode("the") == [256, 260]
    assert tiny.encode("a<|user|>b</s>", add_special=False) == [64, 258, 65, 257]
    assert tiny.decode([256, 260, 257]) == "the"
    assert tiny.decode([256, 260, 257], skip_special=False) == "<s>the</s>"
    assert tiny.special_ids == {256, 257, 258}
    assert tiny.eos_ids == (257,)
    assert (tiny.vocab_size, tiny.token_id("<s>"), tiny.token_id("nope")) == (264, 256, None)
    assert [tiny.token_bytes(token) for token in (-1, 300, 1 << 40)] == [b"", b"", b""]


def test_smollm2(smollm2: Checkpoint) -> None:
    tokenizer = smollm2.tokenizer
    assert tokenizer.vocab_size == 49152
    assert tokenizer.eos_ids == (0, 2)
    for token, name in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>")):
        assert tokenizer.token_id(name) == token
        assert tokenizer.encode(name) == [token]
    assert tokenizer.encode("Hello world") == [19556, 905]  # no first token is added
    assert tokenizer.encode("<|im_start|>user\nhi<|im_end|>\n") == [1, 4093, 198, 6004, 2, 198]
    digits = tokenizer.encode("2026")
    assert [tokenizer.token_bytes(token) for token in digits] == [b"2", b"0", b"2", b"6"]


def test_gemma3(gemma3: Checkpoint) -> None:
    tokenizer = gemma3.tokenizer
    assert tokenizer.vocab_size == 262144
    assert tokenizer.encode("Hello world") == [2, 9259, 1902]
    assert tokenizer.encode("<start_of_turn>user\nhi<end_of_turn>", add_special=False) == [
        105,
        2364,
        107,
        2202,
        106,
    ]
    assert tokenizer.encode("    four\n\n\n<table>", add_special=False)[0] == 140
    assert tokenizer.encode("\U0001fae8", add_special=False)[0] >= 238  # bytes where there is no token


def test_loads_fast(smollm2: Checkpoint) -> None:
    fresh = GGUFCheckpoint(smollm2.path)
    start = time.process_time()
    assert fresh.tokenizer.encode("Hello world") == [19556, 905]
    assert time.process_time() - start < 1.0


def _byte_level(pre: str, tokens: list[str], merges: list[str], **extra: Any) -> Tokenizer:
    vocab = [*byte_alphabet(), *tokens]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": vocab,
        "tokenizer.ggml.token_type": np.ones(len(vocab), np.int32),
        "tokenizer.ggml.merges": merges,
        **{f"tokenizer.ggml.{key}": value for key, value in extra.items()},
    }
    return tokenizer_from_gguf(metadata)


def _words(tokenizer: Tokenizer, text: str) -> list[str]:
    return [text[start:end] for _, (start, end) in tokenizer._inner.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("gpt-2", ["Don", "'t", " stop", " 12345", "!!", " ", "\n\n\n", "X"]),
        ("default", ["Don", "'t", " stop", " 12345", "!!", " ", "\n\n\n", "X"]),
        ("smollm", ["Don", "'t", " stop", " ", "1", "2", "3", "4", "5", "!!", " ", "\n\n\n", "X"]),
        ("llama-bpe", ["Don", "'t", " stop", " ", "123", "45", "!!", " \n\n\n", "X"]),
        ("qwen2", ["Don", "'t", " stop", " ", "1", "2", "3", "4", "5", "!!", " \n\n\n", "X"]),
    ],
)
def test_words(pre: str, words: list[str]) -> None:
    got = _words(_byte_level(pre, [], [], add_bos_token=False), "Don't stop 12345!! \n\n\nX")
    if pre in (
        "gpt-2",
        "default",
        "smollm",
    ):  # the run of white space keeps its last character for the next word
        words = [*words[:-3], " \n\n", "\n", "X"]
    assert got == words


def test_merges_and_ignored_merges() -> None:
    tokens, merges = ["ab", "cd", "abcd"], ["a b", "c d"]
    plain, whole = (_byte_level(pre, tokens, merges, add_bos_token=False) for pre in ("gpt-2", "llama-bpe"))
    assert [plain.token_bytes(token) for token in plain.encode("abcd")] == [b"ab", b"cd"]
    assert [whole.token_bytes(token) for token in whole.encode("abcd")] == [b"abcd"]


def test_first_token_is_added_by_metadata() -> None:
    with_bos = _byte_level("gpt-2", [], [], add_bos_token=True, bos_token_id=5)
    assert with_bos.encode("!") == [5, with_bos.encode("!", add_special=False)[0]]
    both = _byte_level(
        "gpt-2", [], [], add_bos_token=True, add_eos_token=True, bos_token_id=5, eos_token_id=6
    )
    assert both.encode("")[:1] + both.encode("")[-1:] == [5, 6]


def _pieces(prefix: bool = True) -> Tokenizer:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["<unk>", "<s>", *bytes_, "\u2581", "a", "b", "ab", "\u2581a", "\u2581ab", "ba"]
    types = [2, 3, *[6] * 256, *[1] * 7]
    scores = [0.0] * 258 + [-1e3, -1e3, -1e3, -2.0, -1.0, -3.0, -0.5]
    return tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": pieces,
            "tokenizer.ggml.token_type": np.array(types, np.int32),
            "tokenizer.ggml.scores": np.array(scores, np.float32),
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.add_space_prefix": prefix,
        }
    )


def test_sentence_piece() -> None:
    tokenizer = _pieces()
    assert tokenizer.strips_leading_space

    def spelled(text: str) -> list[bytes]:
        return [tokenizer.token_bytes(token) for token in tokenizer.encode(text, add_special=False)]

    assert spelled("ab") == [b" ab"]  # " a" scores above "ab", then " a" + "b"
    assert spelled("aba") == [b" a", b"ba"]  # "ba" scores best of all
    assert spelled("a\u00e9") == [b" a", b"\xc3", b"\xa9"]
    assert tokenizer.encode("ab") == [1, 263]
    for text in ("ab", " ab", "a b\u00e9\U0001f916", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert not _pieces(prefix=False).strips_leading_space
    assert _pieces(prefix=False).decode(_pieces(prefix=False).encode(" ab")) == " ab"


def _good() -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", "b", "ab"],
        "tokenizer.ggml.token_type": np.ones(3, np.int32),
        "tokenizer.ggml.merges": ["a b"],
    }


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model", None, "tokenizer.ggml.model must be gpt2 or llama, got nothing"),
        ("model", "bert", "got 'bert'"),
        ("pre", "exotic", "tokenizer.ggml.pre must be one of gpt-2, smollm, llama-bpe, qwen2, got 'exotic'"),
        ("pre", ["x"], "tokenizer.ggml.pre must be a string"),
        ("tokens", None, "tokenizer.ggml.tokens must be an array of strings, got nothing"),
        ("tokens", "abc", "an array of strings, got 'str'"),
        ("tokens", [], "of length 0"),
        ("tokens", ["a", "b", "b"], "tokenizer.ggml.tokens must be unique"),
        ("tokens", ["a", "b", "x" * 1025], "strings of at most 1024 characters, got 1025"),
        ("token_type", None, "tokenizer.ggml.token_type must be an array of numbers"),
        ("token_type", np.ones(2), "tokenizer.ggml.token_type must be of length 3, got 2"),
        ("merges", None, "tokenizer.ggml.merges must be an array of strings"),
        ("merges", ["ab"], "tokenizer.ggml.merges must be pairs joined by a space"),
        ("merges", ["a z"], "tokenizer.ggml must be consistent, got"),
        ("add_bos_token", 1, "tokenizer.ggml.add_bos_token must be a bool, got 1"),
        ("add_bos_token", True, "tokenizer.ggml.bos_token_id must be in [0, 3), got nothing"),
    ],
)
def test_refuses_metadata(key: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match="^gguf: tokenizer.ggml.* must be .*, got") as error:
        tokenizer_from_gguf({**_good(), f"tokenizer.ggml.{key}": value})
    assert words in str(error.value), str(error.value)


def test_refuses_unknown_decoders() -> None:
    inner = Inner(models.BPE({"a": 0}, []))
    for decoder in (None, decoders.WordPiece(), decoders.Sequence([decoders.Replace("x", "y")])):
        if decoder is not None:
            inner.decoder = decoder
        with pytest.raises(
            ValueError, match="tokenizer: decoder must be ByteLevel, Metaspace or SentencePiece's"
        ):
            Tokenizer(inner)


def test_metaspace_and_strip_agree_with_the_library(tmp_path: Any) -> None:
    inner = Inner(models.BPE({"\u2581": 0, "a": 1, "\u2581a": 2, "b": 3}, [("\u2581", "a")]))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    steps = [
        decoders.Replace("\u2581", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    for decoder in (decoders.Sequence(steps), decoders.Metaspace()):
        inner.decoder = decoder
        inner.save(str(tmp_path / "tokenizer.json"))
        tokenizer = tokenizer_from_json(tmp_path / "tokenizer.json", (3,))
        for text in ("ab", " ab", "a b  a"):
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids) == inner.decode(ids) == text
        assert tokenizer.eos_ids == (3,)
    inner.decoder = decoders.Metaspace(prepend_scheme="never")
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    assert not Tokenizer(inner).strips_leading_space


def test_truncation_and_padding_of_the_file_are_ignored() -> None:
    inner = tiny_tokenizer()
    inner.enable_truncation(2)
    inner.enable_padding(length=10)
    assert len(Tokenizer(inner).encode("xyzxyz", add_special=False)) == 6
