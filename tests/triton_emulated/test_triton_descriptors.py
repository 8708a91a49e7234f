# SPDX-License-Identifier: Apache-2.0
"""Tiles of weights by tensor descriptors (TMA) in the linear family: the bits of tiles by pointers, the rules of
descriptors, the instruction. Both emulations execute descriptors; launches take them on sm_90 and newer alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from emulation import same_bits
from linear_family import check_instructions, needs_compiler
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from pyspec.kernels import dots, fp8_linear, linear, w4a16_linear, w8a8_linear

Call = Callable[[bool, int], Tensor]  # tma and the number of rows


def linear_call(n: int, k: int, dtype: torch.dtype) -> Call:
    g = torch.Generator().manual_seed(n + k)
    x, weight = torch.randn(40, k, generator=g), torch.randn(n, k, generator=g).to(dtype)
    c = linear.pick_config(40, n, k, x.dtype, dtype)
    return lambda tma, m: linear._launch(
        x[:m], weight, None, replace(c, split=m < 40 and c.parts > 1), tma=tma
    )


def w4a16_call(n: int, k: int, group_size: int, act_order: bool) -> Call:
    g = torch.Generator().manual_seed(n + k)
    j = k // group_size
    x, qweight = torch.randn(40, k, generator=g), torch.randint(0, 256, (n, k // 2), generator=g).byte()
    scales, zeros = torch.rand(n, j, generator=g) * 0.02, torch.rand(n, j, generator=g) * 15
    g_idx = torch.randint(0, j, (k,), generator=g, dtype=torch.int32) if act_order else None
    pick = lambda m: w4a16_linear.pick_config(m, n, k, group_size, act_order)
    return lambda tma, m: w4a16_linear._launch(
        x[:m], qweight, scales, zeros, g_idx, group_size, pick(m), tma=tma
    )


def fp8_call(n: int, k: int) -> Call:
    g = torch.Generator().manual_seed(n + k)
    x, weight = torch.randn(40, k, generator=g), torch.randn(n, k, generator=g).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-n // 128), -(-k // 128), generator=g)
    pick = lambda m: fp8_linear.pick_config(m, n, k, x.dtype)
    return lambda tma, m: fp8_linear._launch(x[:m], weight, scale, "block", pick(m), tma=tma)


def w8a8_call(n: int, k: int) -> Call:
    g = torch.Generator().manual_seed(n + k)
    x, weight = (torch.randint(-128, 128, (rows, k), generator=g).to(torch.int8) for rows in (40, n))
    x_scale, w_scale = torch.rand(40, generator=g), torch.rand(n, generator=g)
    return lambda tma, m: w8a8_linear._launch(
        x[:m], weight, x_scale[:m], w_scale, torch.float32, w8a8_linear.pick_config(m, n), tma=tma
    )


CALLS = {  # odd N, and K that ends within a tile: what lies behind them must be zero
    "linear-bf16": linear_call(70, 296, torch.bfloat16),
    "linear-f32": linear_call(20, 76, torch.float32),
    "w4a16": w4a16_call(70, 288, 32, act_order=False),
    "w4a16-act-order": w4a16_call(20, 160, 32, act_order=True),
    "fp8": fp8_call(70, 272),
    "w8a8": w8a8_call(70, 208),
}


@pytest.mark.parametrize("m", [1, 40])
@pytest.mark.parametrize("name", CALLS)
def test_descriptors_change_no_bit(name: str, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(
        TensorDescriptor,
        "from_tensor",
        staticmethod(lambda w, block: made.append(1) or TensorDescriptor(w, w.shape, w.stride(), block)),
    )
    got = CALLS[name](True, m)
    assert made == [1]
    same_bits(got, CALLS[name](False, m))
    assert made == [1]


def test_weights_that_break_the_rules_come_by_pointers() -> None:
    weight = torch.zeros(64, 72, dtype=torch.bfloat16)
    tiles = dots.tiles_of(weight, 64, 32, tma=True)
    assert isinstance(tiles, TensorDescriptor)
    assert tiles.block_shape == [64, 32]
    assert tuple(tiles.shape) == (64, 72)
    assert isinstance(dots.tiles_of(weight[:, 8:40], 64, 32, tma=True), TensorDescriptor)
    odd_rows = torch.zeros(64, 70, dtype=torch.bfloat16)
    for other, tma in (
        (weight, False), (weight[:, 1:], True), (odd_rows, True), (weight.t(), True),
        (weight[:1].expand(64, 72), True), (weight.as_strided((60, 72), (64, 1)), True),
    ):  # fmt: skip
        assert dots.tiles_of(other, 64, 32, tma=tma) is other


def test_an_odd_weight_gives_the_bits_of_an_aligned_one() -> None:
    g = torch.Generator().manual_seed(5)
    x, weight = torch.randn(3, 70, generator=g), torch.randn(20, 70, generator=g).bfloat16()
    wide = torch.zeros(20, 80, dtype=torch.bfloat16)
    wide[:, :70] = weight
    c = linear.pick_config(3, 20, 70, x.dtype, weight.dtype)
    same_bits(
        linear._launch(x, weight, None, c, tma=True), linear._launch(x, wide[:, :70], None, c, tma=True)
    )


@needs_compiler
@pytest.mark.parametrize(
    ("module", "name"),
    [
        (linear, "linear-bf16-bf16-M512-N4096-K4096-tma"),
        (w4a16_linear, "w4a16_linear-symmetric-g128-M1-N4096-K4096-tma"),
        (fp8_linear, "fp8_linear-bf16-block-M512-N4096-K4096-tma"),
        (w8a8_linear, "w8a8_linear-M512-N4096-tma"),
    ],
)
def test_machine_code_copies_by_descriptors(module, name: str) -> None:
    """Three stages, each by one instruction; x still comes by cp.async."""
    check_instructions(module.aot_cases(), name, tma_load=3, wgmma=4, cp_async=3, tcgen05=4)
