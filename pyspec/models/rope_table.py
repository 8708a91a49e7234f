# SPDX-License-Identifier: Apache-2.0
"""RoPE angles of a model as one table of cosines and sines, with linear, Llama-3 and YaRN scaling."""

from __future__ import annotations

import math

import torch

from pyspec.models.config import ModelConfig, RopeScaling
from pyspec.models.fields import require


def _llama3(freqs: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    turns = scaling.original_max_position * freqs / (2 * math.pi)  # rotations over the trained context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return freqs * (smooth + (1 - smooth) / scaling.factor)


def _yarn(freqs: torch.Tensor, scaling: RopeScaling, theta: float, head_dim: int) -> torch.Tensor:
    def dimension(rotations: float) -> float:
        ratio = scaling.original_max_position / (rotations * 2 * math.pi)
        return head_dim * math.log(ratio) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    index = torch.arange(head_dim // 2, dtype=torch.float64)
    interpolated = ((index - low) / (high - low)).clamp(0, 1)
    return freqs * (1 - interpolated) + freqs / scaling.factor * interpolated


def rope_table(
    config: ModelConfig, layer_type: str, max_position: int, rope_factors: torch.Tensor | None = None
) -> torch.Tensor:
    """Table f32 [max_position, D]: row p holds cos of the D/2 angles at position p, then their sines.

    Angles are computed in float64 and rounded once at the end. YaRN's attention factor is folded in.
    rope_factors [D/2] (GGUF `rope_freqs.weight`) divides the frequencies of layers that take scaling.
    Sliding layers with a `rope_local_theta` of their own take neither scaling nor factors.
    """
    require(layer_type in ("full", "sliding"), "layer_type", "full or sliding", layer_type, "rope_table")
    require(0 < max_position <= 1 << 24, "max_position", "in [1, 2**24]", max_position, "rope_table")
    local = layer_type == "sliding" and config.rope_local_theta is not None
    theta = config.rope_local_theta if local and config.rope_local_theta is not None else config.rope_theta
    half = config.head_dim // 2
    freqs = float(theta) ** (-torch.arange(half, dtype=torch.float64) / half)
    scale = 1.0
    if not local:
        if rope_factors is not None:
            ok = tuple(rope_factors.shape) == (half,) and bool((rope_factors > 0).all())
            require(ok, "rope_factors", f"positive [{half}]", list(rope_factors.shape), "rope_table")
            freqs = freqs / rope_factors.double()
        scaling = config.rope_scaling
        if scaling is not None and scaling.kind == "linear":
            freqs = freqs / scaling.factor
        elif scaling is not None and scaling.kind == "llama3":
            freqs = _llama3(freqs, scaling)
        elif scaling is not None:
            freqs, scale = _yarn(freqs, scaling, theta, config.head_dim), scaling.attention_factor
    angles = torch.arange(max_position, dtype=torch.float64)[:, None] * freqs
    return torch.cat([angles.cos() * scale, angles.sin() * scale], dim=1).float()
