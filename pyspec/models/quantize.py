# SPDX-License-Identifier: Apache-2.0
"""Float matrices as GGUF blocks of 32: for weights that need not be exact, like those of drafts.

Q8_0: d = max |x| / 127, values round(x / d). Q4_0: d = x / -8 for the x of largest magnitude, values round(x / d) + 8 in [0, 15].
d is rounded to f16 first, and values are those of the rounded d (the formats: pyspec/spec/quant_formats.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyspec.models.fields import require
from pyspec.models.quant_formats import QuantTensor

QUANTIZED = ("q8_0", "q4_0")


def quantize(weight: Tensor, format: str) -> QuantTensor:
    """A float matrix [N, K] in `format` (q8_0 or q4_0), K a multiple of 32; ValueError for another shape or format."""
    require(format in QUANTIZED, "format", " or ".join(QUANTIZED), format, "quantize")
    ok = weight.dim() == 2 and weight.size(1) % 32 == 0 and weight.numel() > 0
    require(ok, "weight", "[N, K] with K a multiple of 32", list(weight.shape), "quantize")
    groups = weight.float().unflatten(1, (weight.size(1) // 32, 32))
    if format == "q8_0":
        scale = (groups.abs().amax(dim=2) / 127).half()
        return join_q8_0(_divided(groups, scale).clamp(-127, 127).to(torch.int8).flatten(1), scale)
    largest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))[..., 0]
    scale = (largest / -8).half()
    q = (_divided(groups, scale) + 8).clamp(0, 15).to(torch.uint8)
    nibbles = q[..., :16] | q[..., 16:] << 4
    blocks = torch.cat([scale[..., None].view(torch.uint8), nibbles], dim=2)
    return QuantTensor("q4_0", (weight.size(0), weight.size(1)), blocks.flatten(1).contiguous())


def join_q8_0(q: Tensor, scale: Tensor) -> QuantTensor:
    """The Q8_0 matrix of int8 values [N, K] and their f16 scales [N, K / 32]."""
    blocks = torch.cat(
        [scale[..., None].view(torch.uint8), q.unflatten(1, (-1, 32)).view(torch.uint8)], dim=2
    )
    return QuantTensor("q8_0", (q.size(0), q.size(1)), blocks.flatten(1).contiguous())


def _divided(groups: Tensor, scale: Tensor) -> Tensor:
    """round(x / d), and 0 where d is 0."""
    d = scale.float()[..., None]
    return torch.where(d == 0, 0.0, groups / torch.where(d == 0, 1.0, d)).round()
