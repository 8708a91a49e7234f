# SPDX-License-Identifier: Apache-2.0
"""Bounded reader of GGUF v2 and v3 files: hostile until every count, offset and size is checked.

Memory stays within a small multiple of the file: nothing is allocated from a number in the header before the
file has been shown to hold that many bytes. Tensors and numeric arrays are views of a private mapping.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyspec.models.quant_formats import QUANT_FORMATS

MAX_ENTRIES = 1 << 16  # metadata keys, and tensors
MAX_STRINGS = 1 << 22  # elements of one array of strings
MAX_NAME = 1 << 10  # bytes of a key or tensor name
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 16

# GGML's tensor types by id (- for numbers never used), so that a refusal can name the type.
_GGML_TYPES = (
    "F32 F16 Q4_0 Q4_1 - - Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ2_XXS IQ2_XS IQ3_XXS "
    "IQ1_S IQ4_NL IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M BF16 - - - TQ1_0 TQ2_0 - - - MXFP4 NVFP4"
)
TYPE_NAMES = dict(enumerate(_GGML_TYPES.split()))
# format -> (weights, bytes) per block
TENSOR_FORMATS = {"f32": (1, 4), "f16": (1, 2), "bf16": (1, 2)} | QUANT_FORMATS
_SCALARS = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 10: "<Q", 11: "<q", 12: "<d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9

Value = bool | int | float | str | list[str] | np.ndarray


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: shape with the row length last, byte offset in the file, size in bytes."""

    name: str
    format: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class GGUFFile:
    """A parsed GGUF file: `version`, `metadata` by key, `tensors` by name, and `data(name)`.

    Raises FileNotFoundError for a missing file and ValueError
    `gguf: <what> must be <rule>, got <value> (file PATH)` for any file that is not exactly what it claims.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.metadata: dict[str, Value] = {}
        self.tensors: dict[str, TensorInfo] = {}
        with open(self.path, "rb") as file:
            self._size = os.fstat(file.fileno()).st_size
            self._require(self._size >= 24, "file size", "at least 24 bytes", self._size)
            # Private and writable: torch takes it without a copy, and a stray write cannot reach the file.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._pos = 0
        magic = self._bytes(4, "magic")
        self._require(magic == b"GGUF", "magic", "b'GGUF'", magic)
        self.version = self._scalar("<I", "version")
        self._require(self.version in (2, 3), "version", "2 or 3 (little endian)", self.version)
        num_tensors = self._count("tensor count", 24, MAX_ENTRIES)
        num_keys = self._count("metadata count", 13, MAX_ENTRIES)
        for _ in range(num_keys):
            key = self._string("metadata key", MAX_NAME)
            self._require(key not in self.metadata, "metadata key", "unique", key)
            self.metadata[key] = self._value(self._scalar("<I", f"type of {key}"), key)
        self._read_tensors(num_tensors)

    def data(self, name: str) -> np.ndarray:
        """uint8 [nbytes]: a tensor's bytes as a view of the mapping. KeyError for an unknown name."""
        info = self.tensors[name]
        return np.frombuffer(self._map, np.uint8, info.nbytes, info.offset)

    def release_pages(self) -> None:
        """Gives the memory of pages that were read back to the system; views stay valid and read them again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def _require(self, ok: bool, what: str, rule: str, value: object) -> None:
        if not ok:
            shown = repr(value)[:120]
            raise ValueError(f"gguf: {what} must be {rule}, got {shown} (file {self.path})")

    def _room(self, size: int, what: str) -> None:
        left = self._size - self._pos
        self._require(size <= left, what, f"inside the file ({left} bytes left)", f"{size} bytes")

    def _bytes(self, size: int, what: str) -> bytes:
        self._room(size, what)
        start, self._pos = self._pos, self._pos + size
        return self._map[start : self._pos]

    def _scalar(self, code: str, what: str) -> int:
        size = struct.calcsize(code)
        self._room(size, what)
        value: int = struct.unpack_from(code, self._map, self._pos)[0]
        self._pos += size
        return value

    def _count(self, what: str, min_bytes: int, limit: int) -> int:
        """A 64-bit count of things of at least `min_bytes` each, which must fit into the rest of the file."""
        count = self._scalar("<Q", what)
        most = min(limit, (self._size - self._pos) // min_bytes)
        self._require(count <= most, what, f"at most {most}", count)
        return count

    def _string(self, what: str, limit: int | None = None) -> str:
        size = self._scalar("<Q", f"length of {what}")
        self._require(limit is None or size <= limit, f"length of {what}", f"at most {limit}", size)
        raw = self._bytes(size, what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self._require(False, what, "UTF-8", raw)
            raise

    def _value(self, kind: int, key: str) -> Value:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind], key)
        if kind == _BOOL:
            value = self._scalar("B", key)
            self._require(value in (0, 1), key, "a bool (0 or 1)", value)
            return bool(value)
        if kind == _STRING:
            return self._string(key)
        self._require(kind == _ARRAY, f"type of {key}", "a GGUF value type (0 to 12)", kind)
        return self._array(key)

    def _array(self, key: str) -> list[str] | np.ndarray:
        kind = self._scalar("<I", f"element type of {key}")
        if kind == _STRING:
            return self._strings(key, self._count(f"length of {key}", 8, MAX_STRINGS))
        known = kind in _SCALARS or kind == _BOOL
        self._require(known, f"element type of {key}", "a number, bool or string (arrays do not nest)", kind)
        dtype = np.dtype("u1" if kind == _BOOL else _SCALARS[kind])
        count = self._count(f"length of {key}", dtype.itemsize, self._size)
        array = np.frombuffer(self._map, dtype, count, self._pos)
        self._pos += count * dtype.itemsize
        return array

    def _strings(self, key: str, count: int) -> list[str]:
        # Written out for speed: a vocabulary has 260 000 strings.
        data, pos, size, length_at = self._map, self._pos, self._size, struct.Struct("<Q").unpack_from
        strings = []
        try:
            for _ in range(count):
                end = pos + 8 + length_at(data, pos)[0]
                if end > size:
                    break
                strings.append(data[pos + 8 : end].decode("utf-8"))
                pos = end
        except UnicodeDecodeError:
            self._require(False, f"{key}[{len(strings)}]", "UTF-8", data[pos + 8 : min(end, pos + 40)])
        except struct.error:
            end = size + 1
        self._require(len(strings) == count, f"{key}[{len(strings)}]", "inside the file", f"byte {pos}")
        self._pos = pos
        return strings

    def _read_tensors(self, count: int) -> None:
        alignment = self.metadata.get("general.alignment", 32)
        rule = f"a power of two in [8, {MAX_ALIGNMENT}]"
        ok = isinstance(alignment, int) and 8 <= alignment <= MAX_ALIGNMENT
        self._require(ok, "general.alignment", rule, alignment)
        assert isinstance(alignment, int)
        self._require(alignment & (alignment - 1) == 0, "general.alignment", rule, alignment)
        names: set[str] = set()
        relative = [self._tensor_info(names) for _ in range(count)]
        start = -(-self._pos // alignment) * alignment
        end, previous = start, "the header"
        for info in sorted(relative, key=lambda info: info.offset):
            what = f"offset of {info.name}"
            self._require(info.offset % alignment == 0, what, f"a multiple of {alignment}", info.offset)
            offset = start + info.offset
            self._require(offset >= end, what, f"beyond {previous}, which ends at {end - start}", info.offset)
            end, previous = offset + info.nbytes, info.name
            self._require(end <= self._size, f"end of {info.name}", f"at most {self._size}", end)
            self.tensors[info.name] = TensorInfo(info.name, info.format, info.shape, offset, info.nbytes)

    def _tensor_info(self, seen: set[str]) -> TensorInfo:
        name = self._string("tensor name", MAX_NAME)
        self._require(name not in seen, "tensor name", "unique", name)
        seen.add(name)
        num_dims = self._scalar("<I", f"dimensions of {name}")
        self._require(1 <= num_dims <= MAX_DIMS, f"dimensions of {name}", f"in [1, {MAX_DIMS}]", num_dims)
        shape = tuple(self._scalar("<Q", f"shape of {name}") for _ in range(num_dims))[::-1]
        kind = self._scalar("<I", f"type of {name}")
        fmt = TYPE_NAMES.get(kind, f"type {kind}")
        supported = fmt.lower() in TENSOR_FORMATS
        self._require(supported, f"type of {name}", f"one of {', '.join(TENSOR_FORMATS).upper()}", fmt)
        block, block_bytes = TENSOR_FORMATS[fmt.lower()]
        self._require(shape[-1] % block == 0, f"row length of {name}", f"a multiple of {block}", shape[-1])
        # Python integers do not overflow; each factor is bounded first so that the product stays small.
        ok = all(1 <= size < 1 << 40 for size in shape)
        self._require(ok, f"shape of {name}", "positive sizes below 2**40", shape)
        nbytes = block_bytes
        for size in (*shape[:-1], shape[-1] // block):
            nbytes *= size
        self._require(nbytes <= self._size, f"size of {name}", f"at most {self._size} bytes", nbytes)
        return TensorInfo(name, fmt.lower(), shape, self._scalar("<Q", f"offset of {name}"), nbytes)
