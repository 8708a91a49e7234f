# SPDX-License-Identifier: Apache-2.0
"""The GGUF reader against the gguf package, lying headers, truncation and thousands of mutations."""

from __future__ import annotations

import random
import re
import resource
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_files import ARRAY, STRING, UINT32, entry, info, raw_gguf, sample_gguf, string
from real_models import cached_model

from pyspec.models.gguf import GGUFFile

SIZE = struct.Struct("<Q").pack
HUGE = (1 << 64) - 1


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_gguf(tmp_path_factory.mktemp("gguf") / "sample.gguf")


def _compare(path: Path) -> None:
    ours, theirs = GGUFFile(path), gguf.GGUFReader(path)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, field in fields.items():
        ours_value = ours.metadata[key]
        if field.types[:1] == [gguf.GGUFValueType.ARRAY] and field.types[1] != gguf.GGUFValueType.STRING:
            assert isinstance(ours_value, np.ndarray)
            assert ours_value.tolist() == np.concatenate([field.parts[i] for i in field.data]).tolist()
        else:
            assert ours_value == field.contents()
    assert set(ours.tensors) == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        entry_ = ours.tensors[tensor.name]
        assert entry_.shape == tuple(tensor.shape.tolist())[::-1]
        assert entry_.format == tensor.tensor_type.name.lower()
        assert entry_.offset == tensor.data_offset
        assert np.array_equal(ours.data(tensor.name), tensor.data.reshape(-1).view(np.uint8))


def test_matches_gguf_package(sample: Path) -> None:
    _compare(sample)


def test_matches_gguf_package_on_a_real_model() -> None:
    _compare(cached_model("smollm2-135m-instruct"))


def test_large_vocabulary_is_fast() -> None:
    path = cached_model("gemma3-270m")
    start = time.process_time()
    file = GGUFFile(path)
    assert time.process_time() - start < 1.0
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 262144  # type: ignore[arg-type]


def test_data_is_a_view(sample: Path) -> None:
    file = GGUFFile(sample)
    assert file.data("f32").base is not None
    assert np.shares_memory(file.data("f32"), file.data("f32"))
    file.data("f32")[:] = 0  # a private mapping: the file stays as it is
    assert GGUFFile(sample).data("f32").any()


F32 = 4 * 8
LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "file size must be at least 24 bytes, got 0"),
    "short": (b"GGUF" + b"\0" * 19, "file size must be at least 24"),
    "magic": (raw_gguf(magic=b"GGML"), "magic must be b'GGUF', got b'GGML'"),
    "version 1": (raw_gguf(version=1), "version must be 2 or 3"),
    "big endian": (raw_gguf(version=3 << 24), "version must be 2 or 3"),
    "tensor count": (raw_gguf(num_tensors=HUGE), "tensor count must be at most 0"),
    "metadata count": (raw_gguf(num_entries=1 << 40), "metadata count must be at most 0"),
    "key length": (
        raw_gguf((string(b"", HUGE) + b"\0" * 32,)),
        "length of metadata key must be at most 1024",
    ),
    "key not UTF-8": (raw_gguf((string(b"\xff") + b"\0" * 32,)), "metadata key must be UTF-8"),
    "duplicate key": (
        raw_gguf((entry("k", UINT32, b"\0" * 4), entry("k", UINT32, b"\0" * 4))),
        "metadata key must be unique, got 'k'",
    ),
    "value type": (
        raw_gguf((entry("k", 13, b"\0" * 8),)),
        "type of k must be a GGUF value type (0 to 12), got 13",
    ),
    "bool": (raw_gguf((entry("k", 7, b"\2" + b"\0" * 8),)), "k must be a bool (0 or 1), got 2"),
    "string length": (raw_gguf((entry("k", STRING, SIZE(HUGE)),)), "k must be inside the file"),
    "string not UTF-8": (raw_gguf((entry("k", STRING, string(b"\xc3(")),)), "k must be UTF-8"),
    "nested array": (
        raw_gguf((entry("k", ARRAY, struct.pack("<IQ", ARRAY, 1) + b"\0" * 12),)),
        "element type of k must be a number, bool or string (arrays do not nest), got 9",
    ),
    "array length": (
        raw_gguf((entry("k", ARRAY, struct.pack("<IQ", UINT32, HUGE)),)),
        "length of k must be at most",
    ),
    "array bytes": (
        raw_gguf((entry("k", ARRAY, struct.pack("<IQ", 12, 1 << 61) + b"\0" * 8),)),
        "length of k must be at most",
    ),
    "strings count": (
        raw_gguf((entry("k", ARRAY, struct.pack("<IQ", STRING, 1 << 40)),)),
        "length of k must be at most",
    ),
    "strings overrun": (
        raw_gguf((entry("k", ARRAY, struct.pack("<IQ", STRING, 2) + string(b"", HUGE) + b"\0" * 16),)),
        "k[0] must be inside the file",
    ),
    "strings not UTF-8": (
        raw_gguf((entry("k", ARRAY, struct.pack("<IQ", STRING, 2) + string(b"a") + string(b"\xff")),)),
        "k[1] must be UTF-8",
    ),
    "alignment 0": (
        raw_gguf((entry("general.alignment", UINT32, b"\0" * 4),)),
        "a power of two in [8, 65536], got 0",
    ),
    "alignment 24": (raw_gguf((entry("general.alignment", UINT32, b"\x18\0\0\0"),)), "power of two"),
    "alignment huge": (raw_gguf((entry("general.alignment", UINT32, b"\0\0\0\x80"),)), "power of two"),
    "alignment text": (raw_gguf((entry("general.alignment", STRING, string(b"32")),)), "power of two"),
    "no dimensions": (raw_gguf((), (info("t", ()),)), "dimensions of t must be in [1, 4], got 0"),
    "five dimensions": (raw_gguf((), (info("t", (1,) * 5),)), "dimensions of t must be in [1, 4], got 5"),
    "huge dimensions": (
        raw_gguf((), (info("t", (1,), num_dims=1 << 31),)),
        "dimensions of t must be in [1, 4]",
    ),
    "zero size": (raw_gguf((), (info("t", (8, 0)),)), "shape of t must be positive sizes"),
    "negative size": (raw_gguf((), (info("t", (HUGE,)),)), "shape of t must be positive sizes below 2**40"),
    "product wraps to 0": (
        raw_gguf((), (info("t", (1 << 32, 1 << 32)),), b"\0" * F32),
        "size of t must be at most",
    ),
    "product wraps to 32": (
        raw_gguf((), (info("t", (8, (1 << 39) + 1, 1 << 25, 1)),), b"\0" * F32),
        "size of t must be at most",
    ),
    "too large": (raw_gguf((), (info("t", (9,)),), b"\0" * F32), "end of t must be at most"),
    "row length": (
        raw_gguf((), (info("t", (33,), kind=2),), b"\0" * 64),
        "row length of t must be a multiple of 32",
    ),
    "known type": (raw_gguf((), (info("t", (256,), kind=11),)), "type of t must be one of F32, F16"),
    "unknown type": (raw_gguf((), (info("t", (256,), kind=999),)), "got 'type 999'"),
    "offset": (raw_gguf((), (info("t", (8,), offset=HUGE - 31),), b"\0" * F32), "end of t must be at most"),
    "offset unaligned": (
        raw_gguf((), (info("t", (8,), offset=4),), b"\0" * 64),
        "offset of t must be a multiple",
    ),
    "overlap": (
        raw_gguf((), (info("t", (16,)), info("u", (8,), offset=32)), b"\0" * 64),
        "offset of u must be beyond t, which ends at 64, got 32",
    ),
    "same place": (
        raw_gguf((), (info("t", (8,)), info("u", (8,))), b"\0" * 64),
        "offset of u must be beyond t",
    ),
    "duplicate tensor": (
        raw_gguf((), (info("t", (8,)), info("t", (8,), offset=32)), b"\0" * 64),
        "tensor name must be unique, got 't'",
    ),
    "tensor name": (
        raw_gguf((), (string(b"", 1 << 20) + b"\0" * 32,)),
        "length of tensor name must be at most 1024",
    ),
}


@pytest.mark.parametrize("case", LIES)
def test_refuses_lies(case: str, tmp_path: Path) -> None:
    data, words = LIES[case]
    path = tmp_path / "lie.gguf"
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=rf"^gguf: .* must be .*, got .* \(file {re.escape(str(path))}\)$"
    ) as error:
        GGUFFile(path)
    assert words in str(error.value)


def test_q3_k_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "q3.gguf"
    path.write_bytes(LIES["known type"][0])
    with pytest.raises(ValueError, match="got 'Q3_K'"):
        GGUFFile(path)


def test_missing_file_and_unknown_tensor(sample: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no.gguf"):
        GGUFFile(tmp_path / "no.gguf")
    with pytest.raises(KeyError):
        GGUFFile(sample).data("nope")


def _parses(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    try:
        file = GGUFFile(path)
        for name in file.tensors:
            assert len(file.data(name)) == file.tensors[name].nbytes
    except ValueError as error:
        assert str(error).startswith("gguf: ")  # noqa: PT017 - any other exception fails the test by itself
        return False
    return True


def test_truncation_at_every_length(sample: Path, tmp_path: Path) -> None:
    data = sample.read_bytes()
    header = min(info.offset for info in GGUFFile(sample).tensors.values())
    end = max(info.offset + info.nbytes for info in GGUFFile(sample).tensors.values())  # padding follows
    lengths = [*range(header), *range(header, end, 37), end - 1]
    path = tmp_path / "cut.gguf"
    assert not any(_parses(path, data[:length]) for length in lengths)
    assert _parses(path, data[:end])


def test_mutations_give_value_errors_in_bounded_memory(sample: Path, tmp_path: Path) -> None:
    data, rng, path = sample.read_bytes(), random.Random(0), tmp_path / "mutant.gguf"
    header = min(info.offset for info in GGUFFile(sample).tensors.values())
    words = [HUGE, 1 << 63, (1 << 63) - 1, 1 << 32, (1 << 31) - 1, 0, 1, len(data)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, parsed, mutants = time.process_time(), 0, 2000
    for _ in range(mutants):
        mutant = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(header - 8)
            if rng.random() < 0.5:
                mutant[at] = rng.randrange(256)
            else:
                mutant[at : at + 8] = SIZE(rng.choice(words))
        parsed += _parses(path, bytes(mutant))
    assert 0 < parsed < mutants
    assert time.process_time() - start < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
