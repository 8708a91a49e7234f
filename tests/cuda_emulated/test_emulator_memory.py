# SPDX-License-Identifier: Apache-2.0
"""Tensors of a call in guarded memory: views keep strides, offsets and what they share; their ends are theirs alone."""

from __future__ import annotations

import pytest
import torch
from cuda_emulator import build, emulator
from torch import Tensor

FIXTURES = build.HERE / "fixtures"


def copy_61(x: Tensor, out: Tensor, fault: int, *, checked: bool = False) -> None:
    """out[t] = x[min(t, 61) ...] of faults.cu: with the fault, one element behind the 61st is read."""
    emulator.run(
        FIXTURES / "faults.cu", "one_past_the_end_fixture", {"x": x}, {"out": out}, fault, checked=checked
    )


@pytest.mark.parametrize("offset", range(5))
def test_view_ends_where_its_bytes_end(offset: int) -> None:
    """The storage goes on behind the view, which does not make its bytes the kernel's."""
    storage = torch.arange(100.0)
    x, out = storage[offset : offset + 61], torch.empty(64)
    copy_61(x, out, 0, checked=True)
    assert torch.equal(out[:61], x)
    with pytest.raises(emulator.EmulatorError, match=r"0 bytes past the end of x \(244 bytes\)"):
        copy_61(x, out, 1, checked=True)


@pytest.mark.parametrize("offset", range(1, 4))
def test_view_begins_where_its_bytes_begin(offset: int) -> None:
    storage = torch.arange(100.0)
    with pytest.raises(emulator.EmulatorError, match="4 bytes before the beginning of x"):
        copy_61(storage[offset : offset + 61], torch.empty(64), -1, checked=True)


def test_only_the_view_is_written() -> None:
    storage = torch.full((70,), -1.0)
    copy_61(torch.arange(61.0), storage[3:67], 0)
    assert (storage[:3] == -1).all()
    assert (storage[67:] == -1).all()
    assert torch.equal(storage[3:64], torch.arange(61.0))


def test_views_that_overlap_stay_one_memory() -> None:
    """What is written through one is there in the other, and both are in the original."""
    storage = torch.arange(128.0)
    copy_61(storage[0:61], storage[32:96], 0)
    first = torch.arange(128.0)
    assert torch.equal(storage[:32], first[:32])
    assert torch.equal(storage[96:], first[96:])
    assert torch.equal(storage[32:64], first[:32])


def test_strides_and_mutation_of_an_op() -> None:
    """residual is written in place, through a view with an offset; delta's rows lie apart."""
    residual, delta = torch.randn(3, 2, 24), torch.randn(2, 5, 24)[:, 1:3].reshape(4, 24)[::2]
    weight = torch.rand(30)[4:28]
    want = residual[1] + delta
    before = residual.clone()
    out = emulator.call("add_rms_norm", residual[1], delta, weight, eps=1e-6, checked=True)
    assert torch.equal(residual[1], want)
    assert torch.equal(residual[::2], before[::2])
    assert torch.allclose(out, torch.nn.functional.rms_norm(want, (24,), weight, 1e-6))


def test_input_is_not_written_back() -> None:
    x = torch.arange(61.0)
    with pytest.raises(emulator.EmulatorError, match="x, which the op must not change"):
        emulator.run(FIXTURES / "faults.cu", "writes_an_input_fixture", {"x": x}, {"out": torch.empty(64)}, 1)
    assert torch.equal(x, torch.arange(61.0))


def test_result_outlives_the_call() -> None:
    x, weight = torch.randn(2, 8), torch.rand(8)
    results = [emulator.call("rms_norm", x, weight, eps=1e-6) for _ in range(3)]
    assert all(torch.equal(result, results[0]) for result in results)
    assert results[0].untyped_storage().nbytes() == 2 * 8 * 4


def test_allocations_elsewhere_are_torch_s_own() -> None:
    """Guarded memory is for a call alone: an error in it leaves torch's allocator as it was."""
    with pytest.raises(ValueError, match="rms_norm: weight must be"):
        emulator.call("rms_norm", torch.randn(2, 8), torch.rand(7), eps=1e-6)
    assert (
        torch.empty(3).data_ptr() % 64 == 0
    )  # guarded tensors of 12 bytes end at a page: they begin 16 before it
    assert torch.empty(3).data_ptr() % 4096 != 4096 - 16
