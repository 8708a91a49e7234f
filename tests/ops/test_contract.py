# SPDX-License-Identifier: Apache-2.0
"""Every op at once: the specification and the compiled op refuse the same calls alike; opcheck; empty and strided inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract_tests import all_broken_calls, copies, error_of, first_case, needs_native, op_call
from torch import Tensor

import pyspec
from pyspec import backends
from pyspec.contract import OPS


@pytest.mark.parametrize(("name", "args", "kwargs"), all_broken_calls())
def test_specification_refuses(name: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    _, message = error_of(lambda: OPS[name].run(*args, **kwargs))
    assert message.startswith(f"{name}: ")
    assert " must be " in message
    assert ", got " in message


@needs_native
@pytest.mark.parametrize(("name", "args", "kwargs"), all_broken_calls())
def test_compiled_refuses_alike(name: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    want = error_of(lambda: OPS[name].run(*args, **kwargs))
    assert error_of(lambda: op_call(name)(*args, **kwargs)) == want


@pytest.mark.parametrize("name", sorted(OPS))
def test_opcheck(name: str) -> None:
    case = first_case(OPS[name])
    checks = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if any(isinstance(arg, Tensor) and arg.dtype == torch.float8_e4m3fn for arg in case.args):
        checks.remove("test_schema")  # torch's own comparison of arguments cannot multiply f8
    torch.library.opcheck(op_call(name).default, tuple(copies(case)), case.kwargs, test_utils=checks)


@needs_native
@pytest.mark.parametrize("name", sorted(OPS))
def test_strided_views_give_the_same_bits(name: str) -> None:
    """Every tensor as a view into a larger one, last dimension not contiguous, at an odd offset."""
    case = first_case(OPS[name])

    def view(t: Tensor) -> Tensor:
        wide = torch.empty([*t.shape[:-1], t.shape[-1] * 2 + 3], dtype=t.dtype)
        return wide[..., 1 : 1 + 2 * t.shape[-1] : 2].copy_(t)

    plain, strided = copies(case), [view(a) if isinstance(a, Tensor) and a.dim() else a for a in copies(case)]
    want, got = op_call(name)(*plain, **case.kwargs), op_call(name)(*strided, **case.kwargs)
    flat = lambda out: [] if out is None else [out] if isinstance(out, Tensor) else list(out)
    for a, b in zip(flat(want) + plain, flat(got) + strided, strict=True):
        if isinstance(a, Tensor):
            torch.testing.assert_close(b, a, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", sorted(OPS))
def test_public_function_has_the_schema(name: str) -> None:
    assert callable(getattr(pyspec.ops, name))
    assert getattr(pyspec.ops, name).__doc__
    assert OPS[name].cost is not None


def test_explain_says_why() -> None:
    x, weight = torch.randn(2, 16), torch.rand(16)
    explanation = pyspec.explain("rms_norm", x, weight)
    assert [o.backend for o in explanation.options] == [*backends.BACKENDS, *backends.EMULATED]
    assert all(o.reason for o in explanation.options if o.backend in ("cuda", "triton"))
    with pytest.raises(pyspec.UnsupportedError, match="rms_norm: backend 'cuda' cannot run this call"):
        pyspec.ops.rms_norm(x, weight, backend="cuda")
    with pytest.raises(ValueError, match="explain: op must be one of"):
        pyspec.explain("no_such_op")


@pytest.mark.parametrize("name", sorted(OPS))
def test_tensors_on_two_devices_are_refused(name: str) -> None:
    spec = OPS[name]
    case = first_case(spec)
    tensors = [i for i, arg in enumerate(case.args) if isinstance(arg, Tensor)]
    args = copies(case)
    if len(tensors) < 2:
        pytest.skip(f"{name} takes one tensor")
    args[tensors[-1]] = args[tensors[-1]].to("meta")
    _, message = error_of(lambda: spec.run(*args, **case.kwargs))
    first = spec.inputs[tensors[0]].name
    assert message == f"{name}: {spec.inputs[tensors[-1]].name} must be on cpu (from {first}), got meta"
