# SPDX-License-Identifier: Apache-2.0
"""quant_linear in Triton: bits of the CPU kernels, error, tiles, bad rows, machine code, planted bugs."""

from __future__ import annotations

import pytest
import torch
from emulation import faults, needs_ttsem, same_bits, supported
from linear_family import check_instructions, needs_compiler
from torch import Tensor

from pyspec import spec
from pyspec.backends import native
from pyspec.contract import Case
from pyspec.kernels import quant_linear as kernels
from pyspec.spec.pack_quant_weight import random_rows
from pyspec.spec.quant_formats import FORMATS, grouped, rounded

formats = pytest.mark.parametrize("name", FORMATS)
Config = kernels.Config


def problem(name: str, m: int, n: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(m + n + k)
    return torch.randn(m, k, generator=g), random_rows(name, n, k), torch.randn(n, generator=g)


def check_error(got: Tensor, x: Tensor, qweight: Tensor, bias: Tensor | None, name: str) -> None:
    """Every f32 rounding is 2^-24 of the terms at most; there are three per group, and three more."""
    exact = spec.quant_linear.reference(x, qweight, bias, format=name).double()
    w = rounded(grouped(qweight, name), name)
    q, scale, _ = spec.quantize_activations.reference(x)
    values = (q.double() * scale.double().repeat_interleave(32, dim=1)).abs()
    minima = (w.minimum * w.multiplier).double().repeat_interleave(FORMATS[name].group, dim=1).abs()
    terms = values @ (w.dense().double().abs() + 2 * minima).T + (0 if bias is None else bias.double().abs())
    assert (
        (got.double() - exact).abs() <= 2.0**-24 * (3 + 3 * x.size(1) / FORMATS[name].group) * terms
    ).all()


@pytest.mark.parametrize("case", [p for p in supported("quant_linear", kernels.limit) if "M64" not in p.id])
def test_error(case: Case) -> None:
    x, qweight, bias = case.args
    check_error(kernels.quant_linear(*case.args, **case.kwargs), x, qweight, bias, case.kwargs["format"])


@pytest.mark.skipif(
    native is None, reason="pyspec._C is not compiled: the CPU kernels are what it is compared with"
)
@formats
@pytest.mark.parametrize("m", [1, 17])
def test_bits_of_the_cpu_kernels(name: str, m: int) -> None:
    x, qweight, bias = problem(name, m, 19, 2 * FORMATS[name].block_k)
    want = torch.ops.pyspec.quant_linear(x, qweight, bias, format=name)
    same_bits(kernels.quant_linear(x, qweight, bias, format=name), want)


@formats
def test_every_tile_and_one_row_or_many(name: str) -> None:
    x, qweight, bias = problem(name, 20, 20, max(96, FORMATS[name].block_k))
    want = kernels._launch(x, qweight, bias, name, Config(64, 64, 1, 8, 3))
    same_bits(kernels._launch(x, qweight, bias, name, Config(16, 16, 2, 4, 3)), want)
    same_bits(kernels.quant_linear(x[19:], qweight, bias, format=name), want[19:])


@pytest.mark.parametrize("name", ["q4_1", "q6_k"])
def test_bad_rows_poison_themselves_alone(name: str) -> None:
    x, qweight, _ = problem(name, 5, 7, FORMATS[name].block_k)
    want = kernels.quant_linear(x, qweight, format=name)
    x[1, 3], x[3, 30] = torch.nan, -torch.inf
    got = kernels.quant_linear(x, qweight, format=name)
    assert got[1::2].isnan().all()
    same_bits(got[::2], want[::2])


def test_views() -> None:
    x, qweight, bias = problem("q4_0", 6, 20, 64)
    odd = x.t().contiguous().t()[::2], qweight[::2], bias[::2]
    want = kernels.quant_linear(*(t.contiguous() for t in odd), format="q4_0")
    same_bits(kernels.quant_linear(*odd, format="q4_0"), want)


def test_refusals_and_config() -> None:
    assert kernels.limit({}, layout="packed") == 'layout "packed" is that of the CPU kernels: pass GGUF rows'
    assert kernels.limit({}, format="q4_0") is None
    assert kernels.pick_config(1, 576) == Config(16, 16, 4, 4, 3)
    assert kernels.pick_config(17, 49152) == Config(32, 64, 4, 4, 3)
    assert kernels.pick_config(512, 576) == Config(64, 64, 1, 8, 3)


@needs_compiler
def test_machine_code() -> None:
    cases = kernels.aot_cases()
    check_instructions(cases, "quant_linear-q4_k-M1-N4096", imma=1)
    check_instructions(cases, "quant_linear-q8_0-M512-N4096", wgmma=1, tcgen05=1)


@needs_ttsem
@pytest.mark.parametrize(("bug", "kind"), [("no mask", "oob_read"), ("one tile", "race")])
def test_planted_bugs_are_found(bug: str, kind: str) -> None:
    x, qweight, _ = problem("q4_0", 3, 40, 64)
    with faults(kind):
        kernels._launch(x, qweight, None, "q4_0", Config(16, 16, 4, 4, 3), bug)


def test_an_unrounded_scale_is_found() -> None:
    x, qweight, bias = problem("q4_k", 3, 20, 256)
    got = kernels._launch(x, qweight, bias, "q4_k", kernels.pick_config(3, 20), "exact scale")
    with pytest.raises(AssertionError):
        check_error(got, x, qweight, bias, "q4_k")
