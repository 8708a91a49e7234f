# SPDX-License-Identifier: Apache-2.0
"""What the engine must know of a model: sizes, attention, RoPE and special tokens, all validated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from pyspec.models.fields import is_int, require

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma3")

# Upper bounds keep products of sizes inside 64 bits and refuse nonsense before anything is allocated.
_SIZE_LIMITS = {
    "num_layers": 1024,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_heads": 1024,
    "num_kv_heads": 1024,
    "head_dim": 1024,
    "vocab_size": 1 << 22,
    "max_position": 1 << 24,
}


def _check(ok: bool, argument: str, rule: str, value: object) -> None:
    require(ok, argument, rule, value, "config")


def _check_float(name: str, value: object, rule: str, accept: Callable[[float], bool]) -> None:
    number = isinstance(value, float) or is_int(value)
    _check(number and accept(value), name, rule, value)  # type: ignore[arg-type]


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE frequencies are stretched beyond the trained context.

    kind: "linear" (every frequency / factor), "llama3" (low frequencies / factor, a smooth band between
    `original_max_position / low_freq_factor` and `/ high_freq_factor`), or "yarn" (arXiv 2309.00071: a ramp
    between `beta_fast` and `beta_slow` rotations, cos and sin times `attention_factor`; `truncate` rounds the
    ramp's ends to whole dimensions).
    """

    kind: str
    factor: float
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        kinds = ("linear", "llama3", "yarn")
        _check(self.kind in kinds, "rope_scaling.kind", f"one of {', '.join(kinds)}", self.kind)
        for field in fields(self):
            if field.type == "float":
                value = getattr(self, field.name)
                _check_float(f"rope_scaling.{field.name}", value, "in (0, 1e6]", lambda x: 0 < x <= 1e6)
        limit = _SIZE_LIMITS["max_position"]
        lowest = 0 if self.kind == "linear" else 1
        position = self.original_max_position
        rule = f"an integer in [{lowest}, {limit}]"
        ok = is_int(position) and lowest <= position <= limit
        _check(ok, "rope_scaling.original_max_position", rule, position)
        if self.kind == "llama3":
            low, high = self.low_freq_factor, self.high_freq_factor
            _check(low < high, "rope_scaling.low_freq_factor", f"below {high:g}", low)


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. Every field is checked; ValueError names the field, rule and value.

    rope_local_theta is the base of sliding layers, which then take no scaling; None gives them the RoPE of
    full layers. layer_types has one of "full" and "sliding" per layer; a token of a sliding layer sees itself
    and the sliding_window - 1 tokens before it. attn_scale multiplies q.k. A soft cap c means
    c * tanh(x / c), 0 none. embed_scale multiplies embeddings (sqrt(hidden_size) for Gemma, 1 for others).
    """

    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    rms_eps: float
    rope_theta: float
    rope_local_theta: float | None
    rope_scaling: RopeScaling | None
    sliding_window: int
    layer_types: tuple[str, ...]
    attn_scale: float
    attn_softcap: float
    logit_softcap: float
    activation: str
    qkv_bias: bool
    qk_norm: bool
    post_norms: bool
    embed_scale: float
    tie_embeddings: bool
    bos_id: int | None
    eos_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        known = self.architecture in ARCHITECTURES
        _check(known, "architecture", f"one of {', '.join(ARCHITECTURES)}", self.architecture)
        for name, limit in _SIZE_LIMITS.items():
            value = getattr(self, name)
            _check(is_int(value) and 1 <= value <= limit, name, f"an integer in [1, {limit}]", value)
        rule = f"a multiple of num_kv_heads={self.num_kv_heads}"
        _check(self.num_heads % self.num_kv_heads == 0, "num_heads", rule, self.num_heads)
        _check(self.head_dim % 2 == 0, "head_dim", "even", self.head_dim)
        _check_float("rms_eps", self.rms_eps, "in (0, 1]", lambda x: 0 < x <= 1)
        _check_float("rope_theta", self.rope_theta, "in (1, 1e12]", lambda x: 1 < x <= 1e12)
        if self.rope_local_theta is not None:
            _check_float("rope_local_theta", self.rope_local_theta, "in (1, 1e12]", lambda x: 1 < x <= 1e12)
        _check_float("attn_scale", self.attn_scale, "in (0, 1e3]", lambda x: 0 < x <= 1e3)
        _check_float("attn_softcap", self.attn_softcap, "in [0, 1e6]", lambda x: 0 <= x <= 1e6)
        _check_float("logit_softcap", self.logit_softcap, "in [0, 1e6]", lambda x: 0 <= x <= 1e6)
        _check_float("embed_scale", self.embed_scale, "in (0, 1e6]", lambda x: 0 < x <= 1e6)
        _check(self.activation in ("silu", "gelu_tanh"), "activation", "silu or gelu_tanh", self.activation)
        self._check_layers()
        for name, token in (("bos_id", self.bos_id), *(("eos_ids", eos) for eos in self.eos_ids)):
            ok = token is None or (is_int(token) and 0 <= token < self.vocab_size)
            _check(ok, name, f"token ids in [0, {self.vocab_size})", token)

    def _check_layers(self) -> None:
        rule = f"a tuple of num_layers={self.num_layers}"
        _check(len(self.layer_types) == self.num_layers, "layer_types", rule, self.layer_types)
        for kind in self.layer_types:
            _check(kind in ("full", "sliding"), "layer_types", "full or sliding", kind)
        sliding = "sliding" in self.layer_types
        window = self.sliding_window
        ok = is_int(window) and (1 if sliding else 0) <= window <= (1 << 31) - 1
        _check(ok, "sliding_window", f"an integer, at least {int(sliding)} for these layer_types", window)


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every weight that a checkpoint must hold (matrices are [N, K])."""
    hidden, q_rows = config.hidden_size, config.num_heads * config.head_dim
    kv_rows, mlp = config.num_kv_heads * config.head_dim, config.intermediate_size
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "q_proj": (q_rows, hidden),
        "k_proj": (kv_rows, hidden),
        "v_proj": (kv_rows, hidden),
        "o_proj": (hidden, q_rows),
        "mlp_norm": (hidden,),
        "gate_proj": (mlp, hidden),
        "up_proj": (mlp, hidden),
        "down_proj": (hidden, mlp),
    }
    if config.qkv_bias:
        layer |= {"q_bias": (q_rows,), "k_bias": (kv_rows,), "v_bias": (kv_rows,)}
    if config.qk_norm:
        layer |= {"q_norm": (config.head_dim,), "k_norm": (config.head_dim,)}
    if config.post_norms:
        layer |= {"post_attn_norm": (hidden,), "post_mlp_norm": (hidden,)}
    shapes: dict[str, tuple[int, ...]] = {"embed": (config.vocab_size, hidden), "final_norm": (hidden,)}
    if not config.tie_embeddings:
        shapes["lm_head"] = (config.vocab_size, hidden)
    for i in range(config.num_layers):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes
