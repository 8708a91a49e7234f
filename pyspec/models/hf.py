# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face folder as a Checkpoint: config.json, safetensors, tokenizer.json and chat template."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from pyspec.models.checkpoint import Checkpoint
from pyspec.models.config import weight_shapes
from pyspec.models.fields import Fields, require
from pyspec.models.hf_config import config_from_hf, token_ids
from pyspec.models.quant_formats import QuantTensor
from pyspec.models.safetensors_folder import FLOATS, MAX_JSON_BYTES, check_tensor, open_tensors, read_json
from pyspec.models.tokenizer import Tokenizer, tokenizer_from_json

MAX_APPENDED = 16  # no model has more MTP modules
# A decoder layer's weights, by canonical name, as transformers calls them.
LAYER_NAMES = {
    "attn_norm": "input_layernorm.weight",
    "q_proj": "self_attn.q_proj.weight",
    "k_proj": "self_attn.k_proj.weight",
    "v_proj": "self_attn.v_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "o_proj": "self_attn.o_proj.weight",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate_proj": "mlp.gate_proj.weight",
    "up_proj": "mlp.up_proj.weight",
    "down_proj": "mlp.down_proj.weight",
}
# Gemma has norms after attention and MLP too, and gives the old name to the new place.
_GEMMA_LAYER = LAYER_NAMES | {
    "post_attn_norm": "post_attention_layernorm.weight",
    "mlp_norm": "pre_feedforward_layernorm.weight",
    "post_mlp_norm": "post_feedforward_layernorm.weight",
}
# Where the decoder lies: text models, and both layouts of multimodal Gemma 3 with its head.
_ROOTS = (
    ("model.", "lm_head"),
    ("language_model.model.", "language_model.lm_head"),
    ("model.language_model.", "lm_head"),
)


def _template_tokens(described: dict[str, Any]) -> dict[str, str]:
    """bos_token and eos_token of tokenizer_config.json: each a string, or an object with its content."""
    found = {}
    for name in ("bos_token", "eos_token"):
        token = described.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found[name] = token
    return found


class HFCheckpoint(Checkpoint):
    """See Checkpoint. Weights are views of mapped files; the norms of Gemma get their 1 added, in f32."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        generation = self.path / "generation_config.json"
        eos = read_json(generation).get("eos_token_id") if generation.exists() else None
        try:
            raw = read_json(self.path / "config.json")
            self.config = config_from_hf(raw, token_ids(eos, "eos_token_id"))
            appended = Fields("config", raw).integer("num_nextn_predict_layers", 0)
        except ValueError as error:
            raise ValueError(f"{error} (folder {self.path})") from None
        self._stored = open_tensors(self.path)
        self._weights = self._find_weights(min(appended, MAX_APPENDED))
        tokens = self.path / "tokenizer_config.json"
        described = read_json(tokens) if tokens.exists() else {}
        self.chat_template = self._find_template(described.get("chat_template"))
        self.template_tokens = _template_tokens(described)

    def _find_weights(self, appended: int) -> dict[str, str]:
        """Canonical name -> stored name, with every shape and dtype checked. appended: MTP modules stored as further layers."""
        holding = (roots for roots in _ROOTS if f"{roots[0]}embed_tokens.weight" in self._stored)
        root, head = next(holding, _ROOTS[0])
        top = {"embed": f"{root}embed_tokens", "final_norm": f"{root}norm", "lm_head": head}
        layer = _GEMMA_LAYER if self.config.post_norms else LAYER_NAMES
        found = {}
        for name, shape in weight_shapes(self.config).items():
            if name in top:
                stored = f"{top[name]}.weight"
            else:
                _, i, part = name.split(".")
                stored = f"{root}layers.{i}.{layer[part]}"
            check_tensor(self._stored, stored, shape, FLOATS, f"checkpoint {self.path}")
            found[name] = stored
        known, layers = set(found.values()), self.config.num_layers
        modules = tuple(f"{root}layers.{layers + i}." for i in range(appended))
        for stored in self._stored:
            inside = (
                stored.startswith(f"{root}layers.")
                and not stored.startswith(modules)
                and not stored.endswith("rotary_emb.inv_freq")
            )
            rule = f"weights of {self.config.architecture}"
            require(not inside or stored in known, "tensors", rule, stored, f"checkpoint {self.path}")
        return found

    def names(self) -> tuple[str, ...]:
        return tuple(self._weights)

    def weight(self, name: str) -> torch.Tensor | QuantTensor:
        require(name in self._weights, "name", "one of names()", name, "weight")
        stored = self._weights[name]
        tensor: torch.Tensor = self._stored[stored].get_tensor(stored)
        gemma_norm = self.config.architecture == "gemma3" and name.endswith("norm")
        return tensor.float() + 1 if gemma_norm else tensor

    def _load_tokenizer(self) -> Tokenizer:
        return tokenizer_from_json(self.path / "tokenizer.json", self.config.eos_ids)

    def _find_template(self, template: object) -> str | None:
        file = self.path / "chat_template.jinja"
        if file.is_file():
            size = file.stat().st_size
            require(size <= MAX_JSON_BYTES, str(file), f"at most {MAX_JSON_BYTES} bytes", size, "checkpoint")
            return file.read_text("utf-8")
        if isinstance(template, list):  # several named ones: take the default
            objects = (entry for entry in template if isinstance(entry, dict))
            template = {entry.get("name"): entry.get("template") for entry in objects}.get("default")
        return template if isinstance(template, str) else None
