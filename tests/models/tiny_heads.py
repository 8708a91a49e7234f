# SPDX-License-Identifier: Apache-2.0
"""Tiny random draft heads for the tiny targets, as folders in the forms that are found in the wild."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyspec.drafts.heads.eagle3_checkpoint import write_eagle3
from pyspec.drafts.heads.eagle3_config import Eagle3Config, config_from_head, head_shapes
from pyspec.drafts.heads.mtp import MIMO, QWEN, SPECULATORS, deepseek, mtp_shapes
from pyspec.models.config import ModelConfig

LAYER: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}  # fmt: skip


def eagle3_config(**changes: Any) -> Eagle3Config:
    """A head for the tiny targets (two layers), with changed fields of Eagle3Config or, by LAYER's names, of its layer."""
    layer = {
        **LAYER,
        **{name: changes.pop(name) for name in list(changes) if name in {*LAYER, "rope_scaling"}},
    }
    described = {
        "speculators_model_type": "eagle3", "transformer_layer_config": layer, "draft_vocab_size": 64,
        "eagle_aux_hidden_state_layer_ids": [0, 1, 2],
    }  # fmt: skip
    return replace(config_from_head(described), **changes)


def eagle3_weights(config: Eagle3Config, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """(random weights by canonical name, ascending random target ids)."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: (1.0 if len(shape) == 1 else 0.0) + 0.15 * torch.randn(shape, generator=generator)
        for name, shape in head_shapes(config).items()
    }
    ids = (
        torch.randperm(config.layer.vocab_size, generator=generator)[: config.draft_vocab_size].sort().values
    )
    return weights, ids


def eagle3_folder(path: Path, config: Eagle3Config, seed: int = 0, **options: Any) -> Path:
    """Writes a random head in the form of speculators."""
    weights, ids = eagle3_weights(config, seed)
    write_eagle3(path, config, weights, ids, verifier="tiny", **{"dtype": torch.float32, **options})
    return path


def specforge_folder(path: Path, config: Eagle3Config, seed: int = 0) -> Path:
    """The same head in the form of SpecForge."""
    eagle3_folder(path, config, seed)
    tensors = load_file(path / "model.safetensors")
    renamed = {name.replace("layers.0.", "midlayer."): tensor for name, tensor in tensors.items()}
    save_file(renamed, path / "model.safetensors")
    described: dict[str, Any] = {
        **LAYER, "architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": config.draft_vocab_size,
        "num_hidden_layers": 36,
    }  # fmt: skip
    if config.taps is not None:
        described["eagle_config"] = {
            "eagle_aux_hidden_state_layer_ids": [i - 1 for i in config.taps], "use_aux_hidden_state": True,
        }  # fmt: skip
    (path / "config.json").write_text(json.dumps(described))
    return path


def mtp_folder(path: Path, target: ModelConfig, form: str, seed: int = 0) -> Path:
    """A random MTP module for this target as a folder of the family `form`: speculators, qwen, mimo or deepseek."""
    kind = {"speculators": SPECULATORS, "qwen": QWEN, "mimo": MIMO, "deepseek": deepseek(target.num_layers)}[
        form
    ]
    layer = replace(target, num_layers=1, layer_types=("full",), sliding_window=0, tie_embeddings=False)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        kind.name(name): (1.0 if name.endswith("norm") else 0.0)
        + 0.15 * torch.randn(shape, generator=generator)
        for name, shape in mtp_shapes(layer).items()
    }
    described: dict[str, Any] = {"architectures": ["AnyForCausalLM"], "num_nextn_predict_layers": 1}
    if form == "speculators":
        nested = {
            **LAYER, "model_type": target.architecture, "num_hidden_layers": target.num_layers,
            "layer_types": ["full_attention"] * target.num_layers, "head_dim": target.head_dim,
            "rms_norm_eps": target.rms_eps,
        }  # fmt: skip
        described = {"speculators_model_type": "mtp", "transformer_layer_config": nested}
    path.mkdir(parents=True, exist_ok=True)
    save_file({**tensors, "model.norm.weight": torch.ones(1)}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(described))
    return path


def medusa_folder(
    path: Path, target: ModelConfig, form: str, heads: int = 3, blocks: int = 1, seed: int = 0
) -> Path:
    """Random Medusa heads as a folder in the form "repository", "version 2" (the target's LM head), "vllm" or "truncated"."""
    generator = torch.Generator().manual_seed(seed)
    size, vocabulary = target.hidden_size, target.vocab_size
    columns = 40 if form == "truncated" else vocabulary
    random = lambda *shape: 0.15 * torch.randn(shape, generator=generator)
    tensors: dict[str, Tensor] = {}
    for i in range(heads):
        for block in range(blocks):
            if form in ("repository", "version 2"):
                tensors[f"{i}.{block}.linear.weight"] = random(size, size)
                tensors[f"{i}.{block}.linear.bias"] = random(size)
            else:
                tensors[f"blocks.{i}.layers.{block}.weight"] = random(size, size)
        if form == "repository":
            tensors[f"{i}.{blocks}.weight"] = random(columns, size)
        elif form == "vllm":
            tensors[f"lm_heads.{i}.weight"] = random(columns, size)
    described: dict[str, Any] = {"medusa_num_heads": heads, "medusa_num_layers": blocks}
    if form in ("vllm", "truncated"):
        described = {
            "model_type": "medusa", "num_heads": heads, "num_hidden_layers": blocks, "hidden_size": size,
            "vocab_size": vocabulary,
        }  # fmt: skip
    if form == "truncated":
        described |= {"truncated_vocab_size": columns, "original_lm_head": True}
        tensors["lm_head.weight"] = random(columns, size)
        tensors["token_map"] = torch.randperm(vocabulary, generator=generator)[:columns]  # in no order
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / ("medusa_lm_head.safetensors" if form == "version 2" else "model.safetensors"))
    (path / "config.json").write_text(json.dumps(described))
    return path
