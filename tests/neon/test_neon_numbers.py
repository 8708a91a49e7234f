# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of the NEON lanes: conversions, rounding, FMA, denormals, NaN and infinity as on this machine, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from neon_emulator import Emulator
from torch import Tensor

EDGES = [
    0x0,
    0x1,
    0x7FFFFF,
    0x800000,
    0x33000000,
    0x387FE000,
    0x38800000,
    0x3F808000,
    0x3F818000,
    0x477FEFFF,
    0x477FF000,
]
EDGES += [0x7F7FFFFF, 0x7F800000, 0x7FC00000]  # denormals, ties of bf16, ends of f16's range, infinity, NaN


def patterns(count: int, seed: int) -> Tensor:
    """f32 of random bits [count]: every exponent alike, and the edges of both signs."""
    g = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31, (count,), generator=g)
    edges = torch.tensor([edge | sign for edge in EDGES for sign in (0, -(2**31))])
    bits[: len(edges)] = edges
    return bits[torch.randperm(count, generator=g)].int().view(torch.float32)


def plain(x: Tensor) -> Tensor:
    """Bits, with one NaN for all."""
    whole = {2: torch.int16, 4: torch.int32}[x.element_size()]
    return torch.where(x.isnan(), torch.nan, x).view(whole)


def check(emulator: Emulator, op: str, *args: Any, **kwargs: Any) -> None:
    got = emulator.call(op, *args, **kwargs)
    want = getattr(torch.ops.pyspec, op)(*args, **kwargs)
    assert torch.equal(plain(got), plain(want))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_widens(emulator: Emulator, dtype: torch.dtype) -> None:
    halves = torch.arange(2**16).to(torch.int16).view(dtype).view(-1, 64)
    check(emulator, "embedding", torch.arange(len(halves), dtype=torch.int32), halves)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_f32_rounds_to_halves(emulator: Emulator, dtype: torch.dtype) -> None:
    scale = patterns(4096, 1)
    one = torch.ones(1, 1, dtype=torch.int8)
    check(emulator, "w8a8_linear", one, one.expand(4096, 1), torch.ones(1), scale, out_dtype=dtype)


def test_fma_rounds_once_and_denormals_are_zero(emulator: Emulator) -> None:
    x = torch.stack([patterns(64, 2), patterns(64, 3)], 1)
    for weight in (torch.stack([patterns(128, 4), patterns(128, 5)], 1), torch.full((16, 2), 1 + 2.0**-12)):
        check(emulator, "linear", x, weight)
    tiny = torch.full((1, 2), 2.0**-80)
    assert emulator.call("linear", tiny, tiny).item() == 0  # 2^-159, and less than the least normal number


@pytest.mark.parametrize("op", ["silu_mul", "gelu_mul"])
def test_quotients_and_exponentials(emulator: Emulator, op: str) -> None:
    check(emulator, op, patterns(4096, 6).view(16, 256))
    check(emulator, op, torch.linspace(-120, 120, 8192).view(16, 512))


def test_norms_and_soft_caps(emulator: Emulator) -> None:
    x = patterns(4096, 7).view(64, 64)
    check(emulator, "rms_norm", x, patterns(64, 8))
    check(emulator, "softcap", x, cap=30.0)


def test_rows_quantise_alike(emulator: Emulator) -> None:
    x = patterns(4096, 9).view(64, 64)
    got, want = emulator.call("quantize_activations", x), torch.ops.pyspec.quantize_activations(x)
    assert torch.equal(plain(got[1]), plain(want[1]))
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[2], want[2])
