# SPDX-License-Identifier: Apache-2.0
"""EAGLE-3 heads in folders: speculators (read and written) and SpecForge (read), each tensor checked before it is used.

Weights are f32, f16 or bf16, or int8 with scales `<weight>_scale` [N, J] for J equal groups along K, which is what
compressed-tensors calls int-quantized. The writer's int8 has groups of 32 with f16 scales: exactly q8_0.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pyspec.drafts.heads.eagle3_config import (
    Eagle3Config,
    config_from_head,
    head_shapes,
    speculators_config,
)
from pyspec.models.fields import require
from pyspec.models.hf import LAYER_NAMES
from pyspec.models.quant_formats import QuantTensor
from pyspec.models.quantize import join_q8_0, quantize
from pyspec.models.safetensors_folder import FLOATS, check_tensor, open_tensors, read_json

_TOP = {
    "fc": "fc",
    "input_norm": "input_norm",
    "embed": "embed_tokens",
    "final_norm": "norm",
    "lm_head": "lm_head",
}
_LAYER = {**LAYER_NAMES, "embed_norm": "input_layernorm.weight", "hidden_norm": "hidden_norm.weight"}
# What a checkpoint may hold that a draft has no use for: the target's own embedding, and what training compared with.
_UNUSED = ("embed_tokens.weight", "verifier_lm_head.weight", "verifier_norm.weight")
_INT8 = {
    "quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed", "ignore": [],
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
        "num_bits": 8, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32, "dynamic": False,
    }}},
}  # fmt: skip


def stored_name(name: str, first_layer: str = "layers.0") -> str:
    """The name in a checkpoint of the weight with this canonical name (see head_shapes)."""
    if not name.startswith("layers."):
        return f"{_TOP.get(name, name)}.weight"
    _, i, part = name.split(".")
    return f"{first_layer if i == '0' else f'layers.{i}'}.{_LAYER[part]}"


class Eagle3Checkpoint:
    """An open head. Every weight of head_shapes(config) has been found with its shape, and nothing unknown beside them.

    target_ids int64 [draft_vocab_size] has the target id of each draft id: distinct, each in [0, vocab_size).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._where = f"eagle3 {self.path}"
        try:
            raw = read_json(self.path / "config.json")
            self.config: Eagle3Config = config_from_head(raw)
        except ValueError as error:
            raise ValueError(f"{error} (folder {self.path})") from None
        self._check_quantization(raw.get("quantization_config"))
        self._stored = open_tensors(self.path)
        self._names = self._find_weights()
        self.target_ids = self._read_target_ids()

    def names(self) -> tuple[str, ...]:
        """Canonical names of the weights."""
        return tuple(self._names)

    def weight(self, name: str) -> Tensor | QuantTensor:
        """One weight as stored (f32, f16 or bf16); int8 ones as q8_0 where their scales allow it, else as f32."""
        require(name in self._names, "name", "one of names()", name, "weight")
        stored = self._names[name]
        tensor = self._tensor(stored)
        if tensor.dtype != torch.int8:
            return tensor
        scale = self._tensor(f"{stored}_scale")
        if scale.dtype == torch.float16 and scale.size(1) * 32 == tensor.size(1):
            return join_q8_0(tensor, scale)
        return (tensor.float().unflatten(1, (scale.size(1), -1)) * scale.float()[..., None]).flatten(1)

    def _tensor(self, stored: str) -> Tensor:
        tensor: Tensor = self._stored[stored].get_tensor(stored)
        return tensor

    def _find_weights(self) -> dict[str, str]:
        first = "midlayer" if any(name.startswith("midlayer.") for name in self._stored) else "layers.0"
        found, known = {}, {*_UNUSED, "d2t", "t2d"}
        for name, shape in head_shapes(self.config).items():
            found[name] = stored = stored_name(name, first)
            known.add(stored)
            matrix = len(shape) == 2
            if (
                check_tensor(self._stored, stored, shape, (*FLOATS, "I8") if matrix else FLOATS, self._where)
                == "I8"
            ):
                known.add(f"{stored}_scale")
                self._check_scale(f"{stored}_scale", shape)
        for stored in self._stored:
            require(
                stored in known, "tensors", "weights of an EAGLE-3 head of this config", stored, self._where
            )
        return found

    def _check_scale(self, stored: str, shape: tuple[int, ...]) -> None:
        require(stored in self._stored, stored, "the scales of an int8 weight", None, self._where)
        got = self._stored[stored].get_slice(stored).get_shape()
        ok = len(got) == 2 and got[0] == shape[0] and got[1] >= 1 and shape[1] % got[1] == 0
        require(ok, stored, f"[{shape[0]}, J] with J a divisor of {shape[1]}", got, self._where)
        check_tensor(self._stored, stored, tuple(got), FLOATS, self._where)

    def _check_quantization(self, stated: object) -> None:
        if stated is not None:
            form = (stated.get("quant_method"), stated.get("format")) if isinstance(stated, dict) else stated
            ok = form in (("compressed-tensors", "int-quantized"), ("compressed-tensors", "naive-quantized"))
            require(ok, "quantization_config", "int-quantized of compressed-tensors", form, self._where)

    def _read_target_ids(self) -> Tensor:
        size, vocabulary = self.config.draft_vocab_size, self.config.layer.vocab_size
        ids = torch.arange(size)
        if "d2t" not in self._stored:
            rule = f"present where draft_vocab_size={size} is below vocab_size={vocabulary}"
            require(size == vocabulary, "d2t", rule, None, self._where)
            return ids
        check_tensor(self._stored, "d2t", (size,), ("I64", "I32"), self._where)
        offsets = self._tensor("d2t").long()
        ok = bool(((offsets >= -ids) & (offsets < vocabulary - ids)).all())
        rule = f"offsets from draft ids to target ids in [0, {vocabulary})"
        require(ok, "d2t", rule, [int(offsets.min()), int(offsets.max())], self._where)
        ids = ids + offsets
        distinct = int(ids.unique().numel())
        require(distinct == size, "d2t", f"offsets to {size} distinct target ids", distinct, self._where)
        if "t2d" in self._stored:
            check_tensor(self._stored, "t2d", (vocabulary,), ("BOOL",), self._where)
            marked = self._tensor("t2d")
            ok = bool(marked[ids].all()) and int(marked.sum()) == size
            require(ok, "t2d", "true exactly at the target ids of d2t", int(marked.sum()), self._where)
        return ids


def write_eagle3(
    folder: str | os.PathLike[str],
    config: Eagle3Config,
    weights: Mapping[str, Tensor],
    target_ids: Tensor,
    *,
    verifier: str,
    architecture: str = "LlamaForCausalLM",
    steps: int = 5,
    dtype: torch.dtype = torch.bfloat16,
    int8: bool = False,
) -> None:
    """Writes config.json and model.safetensors in the form of speculators 0.9; Eagle3Checkpoint reads them back.

    weights       every weight of head_shapes(config), by canonical name and in that shape
    target_ids    [draft_vocab_size]: target id of each draft id, ascending
    verifier, architecture, steps   see speculators_config
    dtype         f32, f16 or bf16, of all weights; with int8, matrices are int8 with one f16 scale per 32 values,
                  which speculators itself reads only through compressed-tensors. K must then be a multiple of 32.

    ValueError names a weight that is missing, left over or of another shape, and ids that are not as said.
    """
    shapes = head_shapes(config)
    require(set(weights) == set(shapes), "weights", f"{sorted(shapes)}", sorted(weights), "write_eagle3")
    vocabulary = config.layer.vocab_size
    ids = target_ids.to(torch.int64).cpu()
    ok = list(ids.shape) == [config.draft_vocab_size] and bool((ids.diff() > 0).all()) and int(ids[0]) >= 0
    rule = f"[{config.draft_vocab_size}] ascending ids in [0, {vocabulary})"
    require(ok and int(ids[-1]) < vocabulary, "target_ids", rule, list(ids.shape), "write_eagle3")
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        got = tuple(weights[name].shape)
        require(got == shape, name, f"{list(shape)}", list(got), "write_eagle3")
        tensor = weights[name].detach().cpu()
        stored = stored_name(name)
        if int8 and len(shape) == 2:
            blocks = quantize(tensor, "q8_0").data.unflatten(1, (-1, 34))
            tensors[stored] = blocks[..., 2:].contiguous().view(torch.int8).flatten(1)
            tensors[f"{stored}_scale"] = blocks[..., :2].contiguous().view(torch.float16)[..., 0]
        else:
            tensors[stored] = tensor.to(dtype).contiguous()
    if config.draft_vocab_size != vocabulary:
        marked = torch.zeros(vocabulary, dtype=torch.bool)
        marked[ids] = True
        tensors |= {"d2t": ids - torch.arange(len(ids)), "t2d": marked}
    name = str(dtype).removeprefix("torch.")
    described: dict[str, Any] = speculators_config(config, verifier, architecture, steps, name)
    if int8:
        described["quantization_config"] = _INT8
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
