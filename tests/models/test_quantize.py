# SPDX-License-Identifier: Apache-2.0
"""Quantisation: against the gguf package where the rules are the same, and by the error that a format allows."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from pyspec.models import dequantize
from pyspec.models.quantize import QUANTIZED, quantize


def _matrix(rows: int = 33, columns: int = 192) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("format", QUANTIZED)
def test_error_is_half_a_step(format: str) -> None:
    weight = _matrix()
    groups = weight.unflatten(1, (-1, 32))
    steps = groups.abs().amax(2, keepdim=True) / (127 if format == "q8_0" else 8)
    error = (dequantize(quantize(weight, format)) - weight).unflatten(1, (-1, 32)).abs()
    allowed = 0.502 if format == "q8_0" else 1.01  # one end of q4_0 lacks the eighth step
    assert bool((error <= allowed * steps).all())
    assert error.median() < 0.3 * steps.median()


@pytest.mark.parametrize("format", QUANTIZED)
def test_close_to_the_reference(format: str) -> None:
    """The gguf package divides by the unrounded scale: values differ by one step in few places, scales in none."""
    weight = _matrix()
    ours = quantize(weight, format).data.numpy()
    theirs = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[format.upper()])
    assert ours.shape == theirs.shape
    assert (ours != theirs).mean() < 0.01
    size = 34 if format == "q8_0" else 18
    scales = [
        np.lib.stride_tricks.sliding_window_view(x.reshape(-1, size), 2, 1)[:, 0] for x in (ours, theirs)
    ]
    assert np.array_equal(*scales)


@pytest.mark.parametrize("format", QUANTIZED)
def test_zeros_and_representable_values_are_exact(format: str) -> None:
    assert not dequantize(quantize(torch.zeros(2, 64), format)).any()
    values = torch.arange(-8, 8).repeat(2)[None] * 0.25
    exact = values if format == "q4_0" else torch.linspace(-127, 127, 32).round()[None] * 0.25
    assert torch.equal(dequantize(quantize(exact, format)), exact)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="format must be q8_0 or q4_0, got 'q6_k'"):
        quantize(_matrix(), "q6_k")
    for weight in (torch.zeros(4, 33), torch.zeros(32), torch.zeros(0, 32)):
        with pytest.raises(ValueError, match="K a multiple of 32"):
            quantize(weight, "q8_0")
