# SPDX-License-Identifier: Apache-2.0
"""Folders of safetensors: JSON of bounded size, shards by an index, and tensors whose shape and dtype are checked first.

Nothing is allocated by what a hostile file promises: sizes come from the files' headers, and tensors are views of mapped files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from pyspec.models.fields import Fields, require

MAX_JSON_BYTES = 1 << 26
MAX_SHARDS = 4096
FLOATS = ("F32", "F16", "BF16")
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")  # a plain name: no folders, no dots first
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size; ValueError names the file."""
    require(path.is_file(), "file", "present", str(path), "checkpoint")
    size = path.stat().st_size
    require(size <= MAX_JSON_BYTES, str(path), f"at most {MAX_JSON_BYTES} bytes", size, "checkpoint")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"checkpoint: {path} must be JSON, got {error}") from None
    require(isinstance(value, dict), str(path), "a JSON object", type(value).__name__, "checkpoint")
    return dict(value)


def open_tensors(folder: Path, single: str = "model.safetensors") -> dict[str, Any]:
    """Stored name -> the open safetensors file of `folder` that holds it, by the index of shards if there is one, else `single`."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        shard = _open(folder, single)
        return dict.fromkeys(shard.keys(), shard)
    files = Fields(f"checkpoint {index}", read_json(index)).mapping("weight_map")
    for file in set(map(str, files.values())):
        rule = "a plain *.safetensors name in the folder"
        require(_SHARD.fullmatch(file) is not None, f"{index}: shard", rule, file, "checkpoint")
    shards = dict.fromkeys(files.values())
    count = len(shards)
    require(count <= MAX_SHARDS, f"{index}: shards", f"at most {MAX_SHARDS}", count, "checkpoint")
    opened = {file: _open(folder, file) for file in shards}
    held = {file: set(shard.keys()) for file, shard in opened.items()}
    for name, file in files.items():
        require(name in held[file], f"{index}: {name}", f"a tensor of {file}", None, "checkpoint")
    return {name: opened[file] for name, file in files.items()}


def check_tensor(
    stored: Mapping[str, Any], name: str, shape: tuple[int, ...], dtypes: tuple[str, ...], where: str
) -> str:
    """The dtype (one of `dtypes`) of the tensor `name`, found with `shape`; ValueError, beginning with `where`, otherwise."""
    file = stored.get(name)
    require(file is not None, name, f"{list(shape)}", None, where)
    entry = file.get_slice(name)  # type: ignore[union-attr]
    got, dtype = entry.get_shape(), str(entry.get_dtype())
    require(got == list(shape), name, f"{list(shape)}", got, where)
    require(dtype in dtypes, name, " or ".join(dtypes), dtype, where)
    return dtype


def _open(folder: Path, file: str) -> Any:
    path = folder / file
    if not path.is_file() and (pickles := sorted(p.name for kind in _PICKLES for p in folder.glob(kind))):
        rule = "safetensors: a pickle can run any code, so it is not read (convert it)"
        require(False, "weights", rule, f"{folder / pickles[0]}", "checkpoint")
    require(path.is_file(), file, "a file in the folder", str(path), "checkpoint")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except Exception as error:  # SafetensorError, OSError: every way to be malformed
        raise ValueError(f"checkpoint: {path} must be a safetensors file, got {error}") from None
