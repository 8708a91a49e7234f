# SPDX-License-Identifier: Apache-2.0
"""ModelConfig from the metadata of a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pyspec.models.config import ModelConfig, RopeScaling
from pyspec.models.fields import Fields, require
from pyspec.models.gguf import GGUFFile

# Control tokens that end a turn or a text, whatever the metadata calls the end of sequence.
_END_TOKENS = frozenset({"<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>"})
_TOKEN_CONTROL = 3


def _number(keys: Fields, key: str, default: Any = None) -> Any:
    """A float. Metadata holds f32: take its shortest decimal (1e-06, not 9.999999974752427e-07)."""
    value = keys.number(key) if default is None else keys.number(key, default)
    return float(str(np.float32(value))) if math.isfinite(value) else value


def _rope_scaling(keys: Fields, theta_positions: int) -> RopeScaling | None:
    kind = keys.choice("rope.scaling.type", ("none", "linear", "yarn"), "none")
    factor = _number(keys, "rope.scaling.factor", 1.0)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind == "linear":
        return RopeScaling("linear", factor)
    multiplier = _number(keys, "rope.scaling.yarn_log_multiplier", 0.0)
    name = f"{keys.prefix}rope.scaling.yarn_log_multiplier"
    require(multiplier == 0, name, "0 or absent", multiplier, "gguf")
    magnitude = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    return RopeScaling(
        "yarn",
        factor,
        original_max_position=keys.integer("rope.scaling.original_context_length", theta_positions),
        beta_fast=_number(keys, "rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=_number(keys, "rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=magnitude
        * _number(keys, "rope.scaling.yarn_attn_factor", _number(keys, "rope.scaling.attn_factor", 1.0)),
    )


def _layer_types(keys: Fields, num_layers: int, window: int) -> tuple[str, ...]:
    """Which layers slide: `sliding_window_pattern` n (every n-th layer is full) or one bool per layer."""
    if window == 0:
        return ("full",) * num_layers
    pattern = keys.values.get(f"{keys.prefix}attention.sliding_window_pattern")
    if pattern is None:
        pattern = 6 if keys.prefix == "gemma3." else 0
    if isinstance(pattern, np.ndarray):
        return tuple("sliding" if slides else "full" for slides in pattern[: num_layers + 1])
    ok = isinstance(pattern, int) and not isinstance(pattern, bool) and pattern >= 0
    name = f"{keys.prefix}attention.sliding_window_pattern"
    require(ok, name, "a count of layers or one bool per layer", pattern, "gguf")
    return tuple("full" if pattern and (i + 1) % pattern == 0 else "sliding" for i in range(num_layers))


def _eos_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    keys = Fields("gguf", metadata, "tokenizer.ggml.")
    named = [keys.integer(f"{name}_token_id", None) for name in ("eos", "eot", "eom")]
    ids = {token for token in named if token is not None}
    tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if isinstance(tokens, list) and isinstance(types, np.ndarray):
        control = np.flatnonzero(types[: len(tokens)] == _TOKEN_CONTROL).tolist()
        ids |= {token for token in control if tokens[token] in _END_TOKENS}
    return tuple(sorted(ids))


def config_from_gguf(file: GGUFFile) -> ModelConfig:
    """The configuration that a GGUF file describes. ValueError names the key that is missing or unsupported.

    Architectures llama (also Mistral and SmolLM, which share it), qwen2, qwen3 and gemma3.
    """
    metadata = file.metadata
    architecture = Fields("gguf", metadata).text("general.architecture")
    supported = ("llama", "qwen2", "qwen3", "gemma3")
    rule = f"one of {', '.join(supported)}"
    require(architecture in supported, "general.architecture", rule, architecture, "gguf")
    keys = Fields("gguf", metadata, f"{architecture}.")
    experts = keys.integer("expert_count", 0)
    require(experts == 0, f"{architecture}.expert_count", "0 (no mixture of experts)", experts, "gguf")
    num_layers, hidden = keys.integer("block_count"), keys.integer("embedding_length")
    heads = keys.integer("attention.head_count")
    require(1 <= num_layers <= 1024, f"{architecture}.block_count", "in [1, 1024]", num_layers, "gguf")
    require(heads >= 1, f"{architecture}.attention.head_count", "at least 1", heads, "gguf")
    head_dim = keys.integer("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        value = keys.integer(key, head_dim)
        require(value == head_dim, f"{architecture}.{key}", f"the head dimension {head_dim}", value, "gguf")
    require("token_embd.weight" in file.tensors, "token_embd.weight", "present", None, "gguf")
    window = keys.integer("attention.sliding_window", 0)
    max_position = keys.integer("context_length")
    gemma = architecture == "gemma3"
    # Gemma 3 27B alone (62 layers) scales by hidden_size / num_heads instead of head_dim.
    scale_dim = hidden / heads if gemma and num_layers == 62 else head_dim
    require(scale_dim > 0, f"{architecture}.attention.key_length", "positive", scale_dim, "gguf")
    return ModelConfig(
        architecture=architecture,
        num_layers=num_layers,
        hidden_size=hidden,
        intermediate_size=keys.integer("feed_forward_length"),
        num_heads=heads,
        num_kv_heads=keys.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        max_position=max_position,
        rms_eps=_number(keys, "attention.layer_norm_rms_epsilon"),
        rope_theta=_number(keys, "rope.freq_base", 10000.0),
        rope_local_theta=_number(keys, "rope.freq_base_swa", 10000.0) if gemma else None,
        rope_scaling=_rope_scaling(keys, max_position),
        sliding_window=window,
        layer_types=_layer_types(keys, num_layers, window),
        attn_scale=_number(keys, "attention.scale", 0.0) or scale_dim**-0.5,
        attn_softcap=_number(keys, "attn_logit_softcapping", 0.0),
        logit_softcap=_number(keys, "final_logit_softcapping", 0.0),
        activation="gelu_tanh" if gemma else "silu",
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        qk_norm=architecture in ("qwen3", "gemma3"),
        post_norms=gemma,
        embed_scale=hidden**0.5 if gemma else 1.0,
        tie_embeddings="output.weight" not in file.tensors,
        bos_id=Fields("gguf", metadata, "tokenizer.ggml.").integer("bos_token_id", None),
        eos_ids=_eos_ids(metadata),
    )
