# SPDX-License-Identifier: Apache-2.0
"""Which backend runs a call: every backend's reason, emulators, value checks before kernels that cannot make them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract_tests import native

import pyspec
from pyspec import backends, ops, spec
from pyspec.contract import OPS


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The specification registered as both emulators, without `softcap`; the list fills with the ops it ran."""
    ran: list[str] = []

    def call(op: str, *args: Any, **kwargs: Any) -> Any:
        ran.append(op)
        return OPS[op].reference(*args, **kwargs)

    monkeypatch.setattr(backends, "_emulators", {})
    for name in backends.EMULATED:
        backends.register_emulator(name, call, lambda op: "has no softcap" if op == "softcap" else "")
    return ran


def rope_arguments(position: int = 3) -> tuple[torch.Tensor, ...]:
    table = torch.rand(8, 4)
    return torch.randn(1, 2, 4), torch.tensor([position], dtype=torch.int32), table


def test_every_backend_has_a_reason_without_a_gpu() -> None:
    options = {
        o.backend: o.reason for o in pyspec.explain("rms_norm", torch.randn(2, 8), torch.rand(8)).options
    }
    assert tuple(options) == backends.BACKENDS + backends.EMULATED
    assert options["spec"] == ""
    if native is not None:
        assert options["cpu"] == ""
        if not native.with_cuda:
            assert options["cuda"] == "this build has no CUDA kernels"
    assert options["triton"] in (
        "tensors are on cpu", "no Triton kernel of this op exists", "triton is not installed",
        "pyspec.kernels is not there: the package runs from a source tree that is not installed",
    )  # fmt: skip


def test_emulators_are_named_but_never_chosen(calls: list[str]) -> None:
    explanation = pyspec.explain("rope", *rope_arguments())
    assert explanation.chosen in ("cpu", "spec")
    got = ops.rope(*rope_arguments(), backend="cuda-emulated")
    assert got.shape == (1, 2, 4)
    assert calls == ["rope"]


def test_a_missing_op_of_an_emulator_is_refused_with_its_reason(calls: list[str]) -> None:
    with pytest.raises(
        pyspec.UnsupportedError, match=r"(?s)softcap: backend 'cuda-emulated'.*has no softcap"
    ):
        ops.softcap(torch.randn(2, 8), cap=3.0, backend="cuda-emulated")
    assert calls == []


def test_values_are_checked_before_the_kernel(calls: list[str]) -> None:
    with pytest.raises(ValueError, match=r"rope: positions must be .*got 8"):
        ops.rope(*rope_arguments(position=8), backend="cuda-emulated")
    assert calls == []


def test_limits_of_a_backend_hold_for_its_emulator(calls: list[str]) -> None:
    q, pages = torch.randn(1, 2, 24), torch.randn(1, 4, 1, 24).bfloat16()
    index = lambda *values: torch.tensor(values, dtype=torch.int32)
    args = (q, pages, pages, index(0)[None], index(0), index(0, 1), index(-1))
    with pytest.raises(pyspec.UnsupportedError, match=r"cuda-emulated: D must be"):
        ops.tree_attention(*args, scale=1.0, backend="cuda-emulated")
    assert calls == []


@pytest.mark.parametrize("backend", ["", "gpu", "emulated"])
def test_unknown_backends_are_refused(backend: str) -> None:
    with pytest.raises(pyspec.UnsupportedError, match=f"rms_norm: backend '{backend}' cannot run"):
        ops.rms_norm(torch.randn(2, 8), torch.rand(8), backend=backend)


def test_only_the_emulated_names_can_be_registered() -> None:
    with pytest.raises(
        ValueError, match=r"register_emulator: backend must be cuda-emulated\|triton-emulated, got 'cuda'"
    ):
        backends.register_emulator("cuda", lambda op: None)


def test_check_values_reads_host_copies_of_what_checks_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indices and vectors are copied; matrices and pages, which may be gigabytes, are handed on as they are."""
    copied = []
    to_host = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: copied.append(tuple(self.shape)) or to_host(self))
    args = rope_arguments()
    backends.check_values(spec.rope, spec.rope.bind(args), args, {})
    assert copied == [(1,)]


def test_triton_kernels_refuse_shapes_and_limits_behind_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the dispatcher runs on CUDA tensors where no CUDA kernel is compiled."""

    class Module:
        @staticmethod
        def limit(sizes: dict[str, int], *args: Any, **kwargs: Any) -> str | None:
            return "K must be at least 8" if sizes["K"] < 8 else None

        @staticmethod
        def rms_norm(x: torch.Tensor, weight: torch.Tensor, *, eps: float = 1e-6) -> str:
            return f"ran with eps={eps}"

    monkeypatch.setattr(backends, "_triton_module", lambda op: Module)
    run = lambda columns, size: backends._run_triton("rms_norm", torch.randn(2, columns), torch.rand(size))
    assert run(8, 8) == "ran with eps=1e-06"
    with pytest.raises(ValueError, match=r"rms_norm: weight must be \[K\] with K=8"):
        run(8, 9)
    with pytest.raises(
        pyspec.UnsupportedError, match="rms_norm: backend 'triton' cannot run this call: K must"
    ):
        run(4, 4)
