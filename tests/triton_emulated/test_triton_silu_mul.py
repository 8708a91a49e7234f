# SPDX-License-Identifier: Apache-2.0
"""silu_mul, gelu_mul and softcap in Triton: error against float64, extremes, views, planted bugs."""

from __future__ import annotations

import pytest
import torch
from emulation import faults, needs_ttsem, no_worse, same_bits, supported

from pyspec.contract import OPS, Case
from pyspec.kernels import silu_mul as gates
from pyspec.kernels import softcap as capping

both = pytest.mark.parametrize("name", ["silu_mul", "gelu_mul"])


@both
@pytest.mark.parametrize("case", supported("silu_mul"))
def test_error_at_most_twice_that_of_float32(name: str, case: Case) -> None:
    (gate_up,) = case.args
    reference = OPS[name].reference
    no_worse(getattr(gates, name)(gate_up), reference(gate_up), reference(gate_up.double()))


@both
def test_extremes(name: str) -> None:
    gate = torch.tensor([0.0, -0.0, 1e30, -1e30, 3e38, -200.0, 200.0, torch.nan])
    got = getattr(gates, name)(torch.cat([gate, torch.ones_like(gate)])[None])[0]
    assert got[[0, 1]].tolist() == [0, 0]
    assert got[7].isnan()
    assert got[[3, 5]].abs().max() < 1e-30
    assert got[6] == 200
    if name == "silu_mul":
        assert torch.equal(got[[2, 4]], gate[[2, 4]])


@both
def test_views_equal_copies(name: str) -> None:
    wide = torch.randn(3, 90, generator=torch.Generator().manual_seed(0))
    for view in (wide[:, 5:39], wide[:, ::3], wide.t()):
        same_bits(getattr(gates, name)(view), getattr(gates, name)(view.contiguous()))


@needs_ttsem
@both
def test_missing_mask_is_found(name: str) -> None:
    with faults("oob_read"):
        gates._launch(torch.randn(2, 74), name == "gelu_mul", "no mask")


def test_wrong_half_is_found() -> None:
    """The planted bug multiplies the gate by itself."""
    gate_up = torch.randn(2, 74, generator=torch.Generator().manual_seed(1))
    reference = OPS["silu_mul"].reference
    with pytest.raises(AssertionError, match="of the low precision"):
        no_worse(gates._launch(gate_up, False, "gate twice"), reference(gate_up), reference(gate_up.double()))


@pytest.mark.parametrize("case", supported("softcap"))
def test_softcap_is_close_to_float64(case: Case) -> None:
    (x,) = case.args
    exact = OPS["softcap"].reference(x.double(), **case.kwargs)
    torch.testing.assert_close(capping.softcap(x, **case.kwargs).double(), exact, rtol=0, atol=3e-7 * 30)


def test_softcap_extremes() -> None:
    x = torch.tensor([[0.0, 1e30, -1e30, torch.inf, -torch.inf]])
    assert torch.equal(capping.softcap(x, cap=30.0), torch.tensor([[0.0, 30.0, -30.0, 30.0, -30.0]]))


@needs_ttsem
def test_softcap_missing_mask_is_found() -> None:
    with faults("oob_read"):
        capping._launch(torch.randn(2, 40), 30.0, capping.pick_config(40), "no mask")


def test_configs() -> None:
    assert gates.pick_config(1) == gates.Config(32, 1)
    assert gates.pick_config(300) == gates.Config(512, 4)
    assert gates.pick_config(128256) == gates.Config(1024, 8)
