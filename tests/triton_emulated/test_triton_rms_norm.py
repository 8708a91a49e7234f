# SPDX-License-Identifier: Apache-2.0
"""rms_norm, add_rms_norm and rms_norm_quantize in Triton: error, equal bits, planted bugs."""

from __future__ import annotations

import pytest
import torch
from emulation import copied, faults, needs_ttsem, no_worse, same_bits, supported

from pyspec import spec
from pyspec.contract import Case
from pyspec.kernels import rms_norm as kernels
from pyspec.spec.append_kv import quantise_rows


@pytest.mark.parametrize("case", supported("rms_norm", kernels.limit))
def test_error_at_most_twice_that_of_float32(case: Case) -> None:
    x, weight = case.args
    exact = spec.rms_norm.reference(x.double(), weight.double(), **case.kwargs)
    no_worse(
        kernels.rms_norm(x, weight, **case.kwargs), spec.rms_norm.reference(x, weight, **case.kwargs), exact
    )


@pytest.mark.parametrize("case", supported("add_rms_norm", kernels.limit))
def test_fused_add_equals_the_two_steps(case: Case) -> None:
    residual, delta, weight = copied(case)
    want = residual + delta
    same_bits(
        kernels.add_rms_norm(residual, delta, weight, **case.kwargs),
        kernels.rms_norm(want, weight, **case.kwargs),
    )
    same_bits(residual, want)


@pytest.mark.parametrize("case", supported("rms_norm_quantize", kernels.limit))
def test_fused_quantisation_equals_the_steps(case: Case) -> None:
    x, weight, residual = copied(case)
    added = x if residual is None else residual + x
    want = quantise_rows(kernels.rms_norm(added, weight, **case.kwargs), torch.int8)
    for got, wanted in zip(kernels.rms_norm_quantize(x, weight, residual, **case.kwargs), want, strict=True):
        same_bits(got, wanted)
    if residual is not None:
        same_bits(residual, added)


def test_rows_that_cannot_be_scaled() -> None:
    """Zeros, NaN and infinity: as the specification says, and nobody else's row."""
    x = torch.randn(5, 33, generator=torch.Generator().manual_seed(0))
    x[1], x[2, 5], x[3, 32] = 0, torch.nan, torch.inf
    q, scale = kernels.rms_norm_quantize(x, torch.ones(33), eps=1e-5)
    assert scale[1] == 0
    assert scale[2:4].isnan().all()
    assert not q[1:4].any()
    for row in (0, 4):
        same_bits(q[row : row + 1], kernels.rms_norm_quantize(x[row : row + 1], torch.ones(33), eps=1e-5)[0])


def test_views_and_one_row_or_many() -> None:
    g = torch.Generator().manual_seed(1)
    wide, weight = torch.randn(4, 90, generator=g), torch.randn(80, generator=g)[::2]
    x, residual = wide[:, 3:43], torch.randn(40, 4, generator=g).t()
    all_rows = kernels.rms_norm(x, weight, eps=1e-5)
    for row in range(4):
        same_bits(
            all_rows[row : row + 1], kernels.rms_norm(x[row : row + 1].clone(), weight.clone(), eps=1e-5)
        )
    want = residual + x
    same_bits(kernels.add_rms_norm(residual, x, weight, eps=1e-5), kernels.rms_norm(want, weight, eps=1e-5))
    same_bits(residual.contiguous(), want)


def test_config_follows_from_k_alone() -> None:
    assert kernels.pick_config(1) == kernels.Config(1, 1)
    assert kernels.pick_config(577) == kernels.Config(1024, 4)
    assert kernels.pick_config(32768) == kernels.Config(32768, 16)
    assert kernels.limit({"K": 32769}) == "K must be at most 32768, got 32769"


@needs_ttsem
@pytest.mark.parametrize(("bug", "kind"), [("no mask", "oob_read"), ("shared row", "race")])
def test_planted_bugs_are_found(bug: str, kind: str) -> None:
    x, residual, out = torch.randn(3, 40), torch.randn(3, 40), torch.empty(3, 40)
    with faults(kind):
        kernels._launch(x, residual, torch.ones(40), out, None, 1e-5, bug)
