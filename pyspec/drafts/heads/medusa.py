# SPDX-License-Identifier: Apache-2.0
"""Medusa heads (arXiv 2401.10774): head i predicts the token i + 2 positions behind the target's last hidden state x.

    h = x;  for each block: h = h + silu(block h + bias);  logits = lm_head h

x is the target's, behind its final norm. The heads know nothing of each other's tokens, so every node of a depth has the same
children. A head without an LM head of its own uses the target's.

Two forms of checkpoints are known: that of the Medusa repositories (medusa_num_heads in config.json; medusa_lm_head.safetensors or
model.safetensors with I.L.linear.weight, I.L.linear.bias, I.BLOCKS.weight) and that of vLLM (model_type "medusa"; blocks.I.layers.L.*,
lm_heads.I.weight or one lm_head.weight, token_map where the vocabulary is reduced).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyspec.models.config import ModelConfig
from pyspec.models.fields import Fields, is_int, require
from pyspec.models.safetensors_folder import FLOATS, check_tensor, open_tensors, read_json

MAX_HEADS = 32
MAX_BLOCKS = 16
MEDUSA_FILE = "medusa_lm_head.safetensors"


@dataclass(frozen=True)
class MedusaConfig:
    """num_heads heads of num_blocks blocks each; columns of an LM head, below the target's vocabulary where it is reduced."""

    num_heads: int
    num_blocks: int
    hidden_size: int
    vocab_size: int
    columns: int
    bias: bool
    own_heads: str  # "each" head has an LM head, "one" serves all, "none": the target's

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_heads", 1, MAX_HEADS), ("num_blocks", 0, MAX_BLOCKS), ("columns", 1, self.vocab_size),
        ):  # fmt: skip
            value = getattr(self, name)
            require(
                is_int(value) and low <= value <= high,
                name,
                f"an integer in [{low}, {high}]",
                value,
                "medusa",
            )


class MedusaCheckpoint:
    """Open Medusa heads of a target with this configuration: every weight has been found with its shape.

    Weights: I.L.weight [hidden, hidden], I.L.bias [hidden] where config.bias, I.lm_head or lm_head [columns, hidden] by own_heads.
    target_ids int64 [columns]: the token of each column.
    """

    def __init__(self, path: str | os.PathLike[str], target: ModelConfig) -> None:
        self.path = Path(path)
        self._where = f"medusa {self.path}"
        raw = read_json(self.path / "config.json")
        shards = (self.path / "model.safetensors.index.json", self.path / "model.safetensors")
        self._stored = open_tensors(
            self.path, shards[1].name if any(map(Path.exists, shards)) else MEDUSA_FILE
        )
        if "medusa_num_heads" in raw:
            self.config, self._names, known = self._repository_form(raw, target)
        else:
            self.config, self._names, known = self._vllm_form(raw, target)
        self._check(known)
        self.target_ids = self._read_target_ids()

    def names(self) -> tuple[str, ...]:
        """Canonical names of the weights."""
        return tuple(self._names)

    def weight(self, name: str) -> Tensor:
        """One weight as stored (f32, f16 or bf16)."""
        require(name in self._names, "name", "one of names()", name, "weight")
        return self._tensor(self._names[name])

    def _tensor(self, stored: str) -> Tensor:
        tensor: Tensor = self._stored[stored].get_tensor(stored)
        return tensor

    def _repository_form(
        self, raw: Mapping[str, Any], target: ModelConfig
    ) -> tuple[MedusaConfig, dict[str, str], set[str]]:
        fields = Fields(self._where, raw)
        heads, blocks = fields.integer("medusa_num_heads"), fields.integer("medusa_num_layers", 1)
        root = next(
            (root for root in ("", "medusa_head.") if any(_is_head(name, root) for name in self._stored)), ""
        )
        last = f"{root}0.{blocks}.weight"
        size, vocabulary = target.hidden_size, target.vocab_size
        own = "each" if last in self._stored else "none"
        config = MedusaConfig(
            heads, blocks, size, vocabulary, vocabulary, f"{root}0.0.linear.bias" in self._stored, own
        )
        names: dict[str, str] = {}
        for i in range(heads):
            for block in range(blocks):
                names |= {
                    f"{i}.{block}.{part}": f"{root}{i}.{block}.linear.{part}" for part in _parts(config)
                }
            if own == "each":
                names[f"{i}.lm_head"] = f"{root}{i}.{blocks}.weight"
        return config, names, set()

    def _vllm_form(
        self, raw: Mapping[str, Any], target: ModelConfig
    ) -> tuple[MedusaConfig, dict[str, str], set[str]]:
        fields = Fields(self._where, raw)
        fields.choice("model_type", ("medusa",))
        for name in ("hidden_size", "vocab_size"):
            require(fields.integer(name) == getattr(target, name), name, f"the target's {getattr(target, name)}",
                    fields.integer(name), self._where)  # fmt: skip
        scale = fields.number("logit_scale", 1.0)
        require(scale == 1.0, "logit_scale", "1", scale, self._where)
        columns = fields.integer("truncated_vocab_size", target.vocab_size)
        own = "one" if fields.flag("original_lm_head", False) else "each"
        config = MedusaConfig(
            fields.integer("num_heads"), fields.integer("num_hidden_layers", 1), target.hidden_size,
            target.vocab_size, columns, fields.flag("medusa_fc_bias", False), own,
        )  # fmt: skip
        names = {"lm_head": "lm_head.weight"} if own == "one" else {}
        for i in range(config.num_heads):
            for block in range(config.num_blocks):
                names |= {
                    f"{i}.{block}.{part}": f"blocks.{i}.layers.{block}.{part}" for part in _parts(config)
                }
            if own == "each":
                names[f"{i}.lm_head"] = f"lm_heads.{i}.weight"
        return config, names, {"token_map"}

    def _check(self, known: set[str]) -> None:
        for name, stored in self._names.items():
            size = self.config.hidden_size
            shape = (self.config.columns, size) if name.endswith("lm_head") else (size, size)
            check_tensor(
                self._stored, stored, shape[:1] if name.endswith("bias") else shape, FLOATS, self._where
            )
        known = {*known, *self._names.values()}
        for stored in self._stored:
            require(stored in known, "tensors", "weights of Medusa heads of this config", stored, self._where)

    def _read_target_ids(self) -> Tensor:
        columns, vocabulary = self.config.columns, self.config.vocab_size
        if "token_map" not in self._stored:
            rule = f"present where truncated_vocab_size={columns} is below vocab_size={vocabulary}"
            require(columns == vocabulary, "token_map", rule, None, self._where)
            return torch.arange(columns)
        check_tensor(self._stored, "token_map", (columns,), ("I64", "I32"), self._where)
        ids = self._tensor("token_map").long()
        ok = bool(((ids >= 0) & (ids < vocabulary)).all()) and int(ids.unique().numel()) == columns
        rule = f"{columns} distinct ids in [0, {vocabulary})"
        require(ok, "token_map", rule, [int(ids.min()), int(ids.max())], self._where)
        return ids


def _parts(config: MedusaConfig) -> tuple[str, ...]:
    return ("weight", "bias") if config.bias else ("weight",)


def _is_head(stored: str, root: str) -> bool:
    return stored.startswith(root) and stored.removeprefix(root).split(".")[0].isdecimal()
