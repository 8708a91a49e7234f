# SPDX-License-Identifier: Apache-2.0
"""ModelConfig from the config.json of a Hugging Face folder, as transformers 4 and 5 write it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pyspec.models.config import ModelConfig, RopeScaling
from pyspec.models.fields import Fields, is_int, require

_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma3ForCausalLM": "gemma3",
    "Gemma3ForConditionalGeneration": "gemma3",
}
# What transformers assumes where a Gemma 3 config is silent; published ones leave most of it out.
_GEMMA3_DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
}
# Features that change the result and that the engine does not have: refused unless they are off.
_OFF = {
    "attention_bias": False,
    "mlp_bias": False,
    "use_bidirectional_attention": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}


def _rope_scaling(rope: Fields, max_position: int) -> RopeScaling | None:
    kind = rope.text("rope_type", rope.text("type", "default"))
    known = ("default", "linear", "llama3", "yarn")
    require(kind in known, f"{rope.prefix}rope_type", f"one of {', '.join(known)}", kind, "config")
    if kind == "default":
        return None
    original = rope.integer("original_max_position_embeddings", max_position)
    if kind == "linear":
        return RopeScaling("linear", rope.number("factor"))
    if kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        factor = rope.number("factor")
        return RopeScaling(kind, factor, original, low_freq_factor=low, high_freq_factor=high)
    require(original >= 1, "original_max_position_embeddings", "at least 1", original, "config")
    factor = rope.number("factor", max_position / original)

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    mscale, all_dims = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    ratio = magnitude(mscale) / magnitude(all_dims) if mscale and all_dims > 0 else magnitude(1.0)
    return RopeScaling(
        "yarn",
        factor,
        original,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        attention_factor=rope.number("attention_factor", ratio),
        truncate=rope.flag("truncate", True),
    )


def _rope(config: Fields, gemma: bool) -> tuple[float, float | None, Fields]:
    """theta, theta of sliding layers (None: the same), and the fields of the scaling of full layers."""
    theta = config.number("rope_theta", 10000.0)
    local = config.number("rope_local_base_freq") if gemma else None
    new = config.mapping("rope_parameters", {})
    if "full_attention" in new or "sliding_attention" in new:
        layers = Fields("config", new)
        require(gemma, "rope_parameters", "one set for all layers", sorted(new), "config")
        full = Fields("config", layers.mapping("full_attention", {}))
        sliding = Fields("config", layers.mapping("sliding_attention", {}))
        kind = sliding.text("rope_type", "default")
        require(kind == "default", "rope_parameters.sliding_attention.rope_type", "default", kind, "config")
        local = sliding.number("rope_theta", local)
    else:
        full = Fields("config", new or config.mapping("rope_scaling", {}))
    share = full.number("partial_rotary_factor", 1.0)
    require(share == 1.0, "partial_rotary_factor", "1.0", share, "config")
    return full.number("rope_theta", theta), local, full


def _layer_types(config: Fields, architecture: str, num_layers: int) -> tuple[tuple[str, ...], int]:
    """Layer types and the window (0 where no layer slides), by the rules of each architecture."""
    window = config.integer("sliding_window", 0)
    switched_off = architecture.startswith("qwen") and not config.flag("use_sliding_window", False)
    if architecture == "llama" or switched_off or window == 0:
        return ("full",) * num_layers, 0
    if architecture == "mistral":
        return ("sliding",) * num_layers, window
    stated = config.sequence("layer_types", None)
    if stated is not None:
        names = {"full_attention": "full", "sliding_attention": "sliding"}
        for name in stated:
            require(name in list(names), "layer_types", " or ".join(names), name, "config")
        return tuple(names[name] for name in stated), window
    if architecture == "gemma3":
        period = config.integer("sliding_window_pattern")
        require(period >= 1, "sliding_window_pattern", "at least 1", period, "config")
        return tuple("full" if (i + 1) % period == 0 else "sliding" for i in range(num_layers)), window
    first = config.integer("max_window_layers", num_layers)
    return tuple("sliding" if i >= first else "full" for i in range(num_layers)), window


def token_ids(value: object, name: str) -> tuple[int, ...]:
    """A token id, a list of them or None, as a sorted tuple."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    ok = all(is_int(token) for token in values) and len(values) <= 1024
    require(ok, name, "a token id or a list of them", value, "config")
    return tuple(sorted(set(values)))


def config_from_hf(raw: Mapping[str, Any], eos_ids: tuple[int, ...] = ()) -> ModelConfig:
    """The configuration that a config.json describes; eos_ids (of generation_config.json) join its own.

    Llama, Mistral, Qwen2, Qwen3 and Gemma3ForCausalLM, and the text half of Gemma3ForConditionalGeneration.
    ValueError names the field that is missing or unsupported.
    """
    names = Fields("config", raw).sequence("architectures")
    name = names[0] if len(names) == 1 else names
    known = isinstance(name, str) and name in _ARCHITECTURES
    require(known, "architectures", f"one of {', '.join(_ARCHITECTURES)}", name, "config")
    architecture = _ARCHITECTURES[name]
    gemma = architecture == "gemma3"
    nested = name == "Gemma3ForConditionalGeneration"
    text = Fields("config", raw).mapping("text_config", {}) if nested else raw
    stated = {key: value for key, value in text.items() if value is not None}
    config = Fields("config", {**_GEMMA3_DEFAULTS, **stated} if gemma else stated)
    for key, off in _OFF.items():
        value = config.values.get(key, off)
        require(value == off, key, f"{off} or absent", value, "config")
    num_layers, hidden = config.integer("num_hidden_layers"), config.integer("hidden_size")
    heads, max_position = config.integer("num_attention_heads"), config.integer("max_position_embeddings")
    require(1 <= num_layers <= 1024, "num_hidden_layers", "in [1, 1024]", num_layers, "config")
    require(1 <= heads <= hidden <= 1 << 17, "hidden_size", f"in [heads={heads}, 131072]", hidden, "config")
    head_dim = config.integer("head_dim", hidden // heads)
    act_key = "hidden_activation" if gemma and "hidden_activation" in config.values else "hidden_act"
    activation = "gelu_pytorch_tanh" if gemma else "silu"
    config.choice(act_key, (activation,), activation)
    theta, local_theta, rope = _rope(config, gemma)
    layer_types, window = _layer_types(config, architecture, num_layers)
    scale_dim = config.number("query_pre_attn_scalar", 256.0) if gemma else head_dim
    require(scale_dim > 0, "query_pre_attn_scalar" if gemma else "head_dim", "positive", scale_dim, "config")
    bos = token_ids(config.values.get("bos_token_id", raw.get("bos_token_id")), "bos_token_id")
    eos = token_ids(config.values.get("eos_token_id", raw.get("eos_token_id")), "eos_token_id")
    return ModelConfig(
        architecture=architecture,
        num_layers=num_layers,
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size"),
        num_heads=heads,
        num_kv_heads=config.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        vocab_size=config.integer("vocab_size"),
        max_position=max_position,
        rms_eps=config.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_local_theta=local_theta,
        rope_scaling=_rope_scaling(rope, max_position),
        sliding_window=window,
        layer_types=layer_types,
        attn_scale=scale_dim**-0.5,
        attn_softcap=config.number("attn_logit_softcapping", 0.0),
        logit_softcap=config.number("final_logit_softcapping", 0.0),
        activation="gelu_tanh" if gemma else "silu",
        qkv_bias=architecture == "qwen2",
        qk_norm=architecture in ("qwen3", "gemma3"),
        post_norms=gemma,
        embed_scale=hidden**0.5 if gemma else 1.0,
        tie_embeddings=config.flag("tie_word_embeddings", False),
        bos_id=bos[0] if bos else None,
        eos_ids=tuple(sorted({*eos, *eos_ids})),
    )
