# SPDX-License-Identifier: Apache-2.0
"""An EAGLE-3 head (arXiv 2503.01840): its sizes, its weights, and the two forms in which its config.json is written.

What the head computes for entry j, which pairs the target's features of position j with the token at position j + 1:

    f = fc [feature of tap 1; tap 2; ...]             features: residual stream of the target entering the tapped layers
    a = [embed_norm(E(token)); hidden_norm(f)]        2 * hidden wide: the input of q, k and v of the first layer
    r = f, or hidden_norm(f) if norm_before_residual
    h = r + attention(a), then the feed-forward block and further layers as in any decoder
    logits = lm_head(final_norm(h))                   over the draft vocabulary: what the token at position j + 2 may be

The next step takes h (final_norm(h) if norm_output) in place of f, with the drafted token. norm_before_fc puts one norm before
fc, over all features together; fc_norm one per tap. Draft id i stands for target id i + d2t[i]; t2d marks the target ids meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyspec.models.config import ModelConfig, RopeScaling, weight_shapes
from pyspec.models.fields import Fields, is_int, require
from pyspec.models.hf_config import config_from_hf

SPECULATORS_VERSION = "0.9.0"
MAX_TAPS = 8
_SPECFORGE = "LlamaForCausalLMEagle3"
_PAPER = "LlamaForCausalLM"  # heads of the paper's authors: a model's class, but with a draft vocabulary
_KINDS = ("qwen3", "llama")  # model_type of the layers; the first where none is stated
# transformers writes a nested configuration without the fields that have its defaults.
_LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}  # fmt: skip
_QWEN2 = {
    **_LLAMA, "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}  # fmt: skip
_LAYER_DEFAULTS = {
    "llama": ("LlamaForCausalLM", _LLAMA),
    "qwen2": ("Qwen2ForCausalLM", _QWEN2),
    "qwen3": ("Qwen3ForCausalLM", {**_QWEN2, "head_dim": 128}),
}


@dataclass(frozen=True)
class Eagle3Config:
    """An EAGLE-3 head; every field is checked, ValueError names the field, rule and value.

    layer               its decoder layers (Llama or Qwen3), with the target's vocabulary size
    draft_vocab_size    rows of its lm_head; below layer.vocab_size, the checkpoint maps ids by d2t
    target_hidden_size  columns of one tapped layer
    taps                target layers whose input is tapped (their number: what enters the final norm), ascending;
                        None for 2, n // 2 and n - 3 of the target's n layers
    own_embedding       the checkpoint's token embedding is used, not the target's
    """

    layer: ModelConfig
    draft_vocab_size: int
    target_hidden_size: int
    taps: tuple[int, ...] | None = None
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    own_embedding: bool = False

    def __post_init__(self) -> None:
        size, vocabulary = self.draft_vocab_size, self.layer.vocab_size
        rule = f"an integer in [1, vocab_size={vocabulary}]"
        _check(is_int(size) and 1 <= size <= vocabulary, "draft_vocab_size", rule, size)
        width = self.target_hidden_size
        _check(
            is_int(width) and 1 <= width <= 1 << 17, "target_hidden_size", "an integer in [1, 131072]", width
        )
        kind = self.layer.architecture
        _check(kind in _KINDS, "layer.architecture", " or ".join(_KINDS), kind)
        if self.taps is not None:
            ok = 1 <= len(self.taps) <= MAX_TAPS and all(is_int(i) and 0 <= i <= 1024 for i in self.taps)
            _check(ok, "taps", f"1 to {MAX_TAPS} layers in [0, 1024]", self.taps)
            _check(self.taps == tuple(sorted(set(self.taps))), "taps", "ascending and distinct", self.taps)
        both = self.norm_before_fc and self.fc_norm
        _check(not both, "norm_before_fc, fc_norm", "at most one of them true", (True, True))
        if width != self.layer.hidden_size:
            rule = "true where target_hidden_size is not hidden_size"
            _check(self.own_embedding, "own_embedding", rule, self.own_embedding)

    @property
    def num_taps(self) -> int:
        """Tapped layers."""
        return 3 if self.taps is None else len(self.taps)

    def taps_of(self, target: ModelConfig) -> tuple[int, ...]:
        """The tapped layers of this target; ValueError if the head is not one of it."""
        n = target.num_layers
        _check(target.vocab_size == self.layer.vocab_size, "vocab_size", f"the target's {target.vocab_size}",
               self.layer.vocab_size)  # fmt: skip
        _check(target.hidden_size == self.target_hidden_size, "target_hidden_size",
               f"the target's {target.hidden_size}", self.target_hidden_size)  # fmt: skip
        taps = (2, n // 2, n - 3) if self.taps is None else self.taps
        rule = f"distinct layers in [0, num_layers={n}] of the target"
        _check(len(set(taps)) == len(taps) and min(taps) >= 0 and max(taps) <= n, "taps", rule, taps)
        return tuple(sorted(taps))


def head_shapes(config: Eagle3Config) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every float weight of the head (matrices are [N, K]); d2t and t2d are apart."""
    layer = config.layer
    hidden, features = layer.hidden_size, config.num_taps * config.target_hidden_size
    shapes: dict[str, tuple[int, ...]] = {"fc": (hidden, features)}
    if config.norm_before_fc:
        shapes["input_norm"] = (features,)
    if config.fc_norm:
        shapes |= {f"fc_norm.{i}": (config.target_hidden_size,) for i in range(config.num_taps)}
    if config.own_embedding:
        shapes["embed"] = (layer.vocab_size, hidden)
    blocks = {name: shape for name, shape in weight_shapes(layer).items() if name.startswith("layers.")}
    # The first layer's attention is of the embedding and of the features, or the last step's output, a norm for each.
    blocks["layers.0.embed_norm"] = blocks["layers.0.hidden_norm"] = blocks.pop("layers.0.attn_norm")
    for name in ("layers.0.q_proj", "layers.0.k_proj", "layers.0.v_proj"):
        blocks[name] = (blocks[name][0], 2 * hidden)
    return shapes | blocks | {"final_norm": (hidden,), "lm_head": (config.draft_vocab_size, hidden)}


def config_from_head(raw: Mapping[str, Any]) -> Eagle3Config:
    """The head that a config.json describes: of speculators (up to 0.9), of SpecForge, or of the paper's authors.

    ValueError names the field that is missing, unsupported or out of range.
    """
    fields = Fields("eagle3", raw)
    if "speculators_model_type" in raw:
        return _from_speculators(fields)
    rule = f"{_SPECFORGE}, {_PAPER} with draft_vocab_size, or a config with speculators_model_type"
    _check(is_flat_head(raw), "architectures", rule, raw.get("architectures"))
    return _from_specforge(fields)


def is_flat_head(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of an EAGLE-3 head in the form of SpecForge or of the paper's authors."""
    names = raw.get("architectures")
    return names == [_SPECFORGE] or (names == [_PAPER] and "draft_vocab_size" in raw)


def _from_speculators(fields: Fields) -> Eagle3Config:
    fields.choice("speculators_model_type", ("eagle3",))
    layer = head_layer(fields.mapping("transformer_layer_config"), _KINDS)
    size = fields.integer("draft_vocab_size", 32000)
    return _head(fields, layer, size, fields.sequence("eagle_aux_hidden_state_layer_ids", None), offset=0)


def _from_specforge(fields: Fields) -> Eagle3Config:
    """SpecForge names layers whose output is tapped, and writes one layer whatever num_hidden_layers says."""
    layer = head_layer({"model_type": "llama", **fields.values, "num_hidden_layers": 1}, _KINDS)
    nested = Fields("eagle3", fields.mapping("eagle_config", {}))
    used = nested.flag("use_aux_hidden_state", True)
    _check(used, "eagle_config.use_aux_hidden_state", "true (EAGLE-3 has tapped layers)", used)
    size = fields.integer("draft_vocab_size")
    return _head(fields, layer, size, nested.sequence("eagle_aux_hidden_state_layer_ids", None), offset=1)


def _head(
    fields: Fields, layer: ModelConfig, draft_vocab_size: int, ids: list[Any] | None, offset: int
) -> Eagle3Config:
    rule = f"an array of 1 to {MAX_TAPS} layers"
    ok = ids is None or (1 <= len(ids) <= MAX_TAPS and all(is_int(i) and 0 <= i < 1024 for i in ids))
    _check(ok, "eagle_aux_hidden_state_layer_ids", rule, ids)
    width = fields.integer("target_hidden_size", layer.hidden_size)
    return Eagle3Config(
        layer,
        draft_vocab_size,
        width,
        None if ids is None else tuple(sorted(i + offset for i in ids)),
        norm_before_residual=fields.flag("norm_before_residual", False),
        norm_before_fc=fields.flag("norm_before_fc", False),
        fc_norm=fields.flag("fc_norm", False),
        norm_output=fields.flag("norm_output", False),
        own_embedding=fields.flag("embed_requires_grad", False) or width != layer.hidden_size,
    )


def head_layer(raw: Mapping[str, Any], kinds: tuple[str, ...]) -> ModelConfig:
    """The decoder layers of a head as a model of their own: model_type is one of `kinds`, the first where none is stated."""
    fields = Fields("head", raw)
    kind = fields.choice("model_type", kinds, kinds[0])
    architecture, defaults = _LAYER_DEFAULTS[kind]
    for name in fields.sequence("layer_types", []) if kind == "llama" else ():
        _check(name == "full_attention", "layer_types", "full_attention in a head of Llama layers", name)
    special = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")  # of no use to a head
    stated = {key: value for key, value in raw.items() if value is not None and key not in special}
    return config_from_hf({**defaults, **stated, "architectures": [architecture]})


def speculators_config(
    config: Eagle3Config, verifier: str, architecture: str, steps: int, dtype: str
) -> dict[str, Any]:
    """config.json of the head in the form of speculators 0.9.

    verifier and architecture name the target (a repository or a path, and its class), steps is the length of the
    chains it was trained for, dtype the weights' ("float32", "bfloat16" or "float16").
    """
    layer = config.layer
    qwen = layer.architecture == "qwen3"
    nested: dict[str, Any] = {
        "model_type": layer.architecture, "vocab_size": layer.vocab_size, "hidden_size": layer.hidden_size,
        "intermediate_size": layer.intermediate_size, "num_hidden_layers": layer.num_layers,
        "num_attention_heads": layer.num_heads, "num_key_value_heads": layer.num_kv_heads, "head_dim": layer.head_dim,
        "hidden_act": "silu", "max_position_embeddings": layer.max_position, "rms_norm_eps": layer.rms_eps,
        "rope_theta": layer.rope_theta, "rope_scaling": _rope_dict(layer.rope_scaling), "attention_bias": False,
        "mlp_bias": False, "tie_word_embeddings": False, "dtype": dtype,
    }  # fmt: skip
    if qwen:
        del nested["mlp_bias"]
        nested |= {
            "use_sliding_window": "sliding" in layer.layer_types, "sliding_window": layer.sliding_window or None,
            "layer_types": [f"{kind}_attention" for kind in layer.layer_types],
        }  # fmt: skip
    greedy = {
        "proposal_type": "greedy",
        "speculative_tokens": steps,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    return {
        "architectures": ["Eagle3DraftModel"],
        "speculators_model_type": "eagle3",
        "speculators_version": SPECULATORS_VERSION,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [greedy],
            "verifier": {"name_or_path": verifier, "architectures": [architecture]},
        },
        "transformer_layer_config": nested,
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": config.target_hidden_size,
        "eagle_aux_hidden_state_layer_ids": None if config.taps is None else list(config.taps),
        "norm_before_residual": config.norm_before_residual,
        "norm_before_fc": config.norm_before_fc,
        "fc_norm": config.fc_norm,
        "norm_output": config.norm_output,
        "embed_requires_grad": config.own_embedding,
        "tie_word_embeddings": False,
        "dtype": dtype,
    }


def _rope_dict(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    stated: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        stated["original_max_position_embeddings"] = scaling.original_max_position
    if scaling.kind == "llama3":
        stated |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        stated |= {
            "beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow,
            "attention_factor": scaling.attention_factor, "truncate": scaling.truncate,
        }  # fmt: skip
    return stated


def _check(ok: bool, argument: str, rule: str, value: object) -> None:
    require(ok, argument, rule, value, "eagle3")
