# SPDX-License-Identifier: Apache-2.0
"""ModelConfig from the metadata of a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pyspec.models.config import ModelConfig, RopeScaling, require
from pyspec.models.gguf import GGUFFile

_REQUIRED = object()
# Control tokens that end a turn or a text, whatever the metadata calls the end of sequence.
_END_TOKENS = frozenset({"<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>"})
_TOKEN_CONTROL = 3


class _Keys:
    """Typed look-ups of `{architecture}.key` with errors that name the key."""

    def __init__(self, metadata: Mapping[str, Any], prefix: str) -> None:
        self.metadata, self.prefix = metadata, prefix

    def get(self, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        name = f"{self.prefix}.{key}"
        value = self.metadata.get(name, default)
        if value is default and default is not _REQUIRED:
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        shown = "nothing" if value is _REQUIRED else value
        article = {"int": "an int", "float": "a float", "str": "a string"}[kind.__name__]
        require(isinstance(value, kind) and not isinstance(value, bool), name, article, shown, "gguf")
        return value

    def size(self, key: str, default: Any = _REQUIRED) -> Any:
        return self.get(key, int, default)

    def number(self, key: str, default: Any = _REQUIRED) -> Any:
        value = self.get(key, float, default)
        # Metadata floats are f32: give back the shortest decimal (1e-06, not 9.999999974752427e-07).
        return float(str(np.float32(value))) if isinstance(value, float) and math.isfinite(value) else value


def _rope_scaling(keys: _Keys, theta_positions: int) -> RopeScaling | None:
    kind = keys.get("rope.scaling.type", str, "none")
    require(
        kind in ("none", "linear", "yarn"),
        f"{keys.prefix}.rope.scaling.type",
        "none, linear or yarn",
        kind,
        "gguf",
    )
    factor = keys.number("rope.scaling.factor", 1.0)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind == "linear":
        return RopeScaling("linear", factor)
    multiplier = keys.number("rope.scaling.yarn_log_multiplier", 0.0)
    name = f"{keys.prefix}.rope.scaling.yarn_log_multiplier"
    require(multiplier == 0, name, "0 or absent", multiplier, "gguf")
    magnitude = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    return RopeScaling(
        "yarn",
        factor,
        original_max_position=keys.size("rope.scaling.original_context_length", theta_positions),
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=magnitude
        * keys.number("rope.scaling.yarn_attn_factor", keys.number("rope.scaling.attn_factor", 1.0)),
    )


def _layer_types(keys: _Keys, num_layers: int, window: int) -> tuple[str, ...]:
    """Which layers slide: `sliding_window_pattern` n (every n-th layer is full) or one bool per layer."""
    if window == 0:
        return ("full",) * num_layers
    pattern = keys.metadata.get(f"{keys.prefix}.attention.sliding_window_pattern")
    if pattern is None:
        pattern = 6 if keys.prefix == "gemma3" else 0
    if isinstance(pattern, np.ndarray):
        return tuple("sliding" if slides else "full" for slides in pattern[: num_layers + 1])
    ok = isinstance(pattern, int) and not isinstance(pattern, bool) and pattern >= 0
    name = f"{keys.prefix}.attention.sliding_window_pattern"
    require(ok, name, "a count of layers or one bool per layer", pattern, "gguf")
    return tuple("full" if pattern and (i + 1) % pattern == 0 else "sliding" for i in range(num_layers))


def _eos_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    keys = _Keys(metadata, "tokenizer.ggml")
    named = [keys.size(f"{name}_token_id", None) for name in ("eos", "eot", "eom")]
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
    architecture = _Keys(metadata, "general").get("architecture", str)
    supported = ("llama", "qwen2", "qwen3", "gemma3")
    rule = f"one of {', '.join(supported)}"
    require(architecture in supported, "general.architecture", rule, architecture, "gguf")
    keys = _Keys(metadata, architecture)
    experts = keys.size("expert_count", 0)
    require(experts == 0, f"{architecture}.expert_count", "0 (no mixture of experts)", experts, "gguf")
    num_layers, hidden = keys.size("block_count"), keys.size("embedding_length")
    heads = keys.size("attention.head_count")
    require(1 <= num_layers <= 1024, f"{architecture}.block_count", "in [1, 1024]", num_layers, "gguf")
    require(heads >= 1, f"{architecture}.attention.head_count", "at least 1", heads, "gguf")
    head_dim = keys.size("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        value = keys.size(key, head_dim)
        require(value == head_dim, f"{architecture}.{key}", f"the head dimension {head_dim}", value, "gguf")
    require("token_embd.weight" in file.tensors, "token_embd.weight", "present", "nothing", "gguf")
    window = keys.size("attention.sliding_window", 0)
    max_position = keys.size("context_length")
    gemma = architecture == "gemma3"
    # Gemma 3 27B alone (62 layers) scales by hidden_size / num_heads instead of head_dim.
    scale_dim = hidden / heads if gemma and num_layers == 62 else head_dim
    require(scale_dim > 0, f"{architecture}.attention.key_length", "positive", scale_dim, "gguf")
    return ModelConfig(
        architecture=architecture,
        num_layers=num_layers,
        hidden_size=hidden,
        intermediate_size=keys.size("feed_forward_length"),
        num_heads=heads,
        num_kv_heads=keys.size("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        max_position=max_position,
        rms_eps=keys.number("attention.layer_norm_rms_epsilon"),
        rope_theta=keys.number("rope.freq_base", 10000.0),
        rope_local_theta=keys.number("rope.freq_base_swa", 10000.0) if gemma else None,
        rope_scaling=_rope_scaling(keys, max_position),
        sliding_window=window,
        layer_types=_layer_types(keys, num_layers, window),
        attn_scale=keys.number("attention.scale", 0.0) or scale_dim**-0.5,
        attn_softcap=keys.number("attn_logit_softcapping", 0.0),
        logit_softcap=keys.number("final_logit_softcapping", 0.0),
        activation="gelu_tanh" if gemma else "silu",
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        qk_norm=architecture in ("qwen3", "gemma3"),
        post_norms=gemma,
        embed_scale=hidden**0.5 if gemma else 1.0,
        tie_embeddings="output.weight" not in file.tensors,
        bos_id=_Keys(metadata, "tokenizer.ggml").size("bos_token_id", None),
        eos_ids=_eos_ids(metadata),
    )
