# SPDX-License-Identifier: Apache-2.0
"""What every op's contract implies: calls that break it once, and comparisons of backends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pyspec.backends import native
from pyspec.contract import DTYPES, OPS, Case, OpSpec

needs_native = pytest.mark.skipif(
    native is None, reason="pyspec._C is not compiled: only the specification runs"
)


def copies(case: Case) -> list[Any]:
    """The case's arguments, tensors copied so that an op may write into them."""
    return [arg.clone() if isinstance(arg, Tensor) else arg for arg in case.args]


def first_case(spec: OpSpec) -> Case:
    assert spec.cases is not None, f"{spec.name} has no cases"
    return next(iter(spec.cases()))


def broken_calls(spec: OpSpec) -> Iterator[tuple[str, list[Any], dict[str, Any]]]:
    """Every size, rank and dtype of the contract broken once."""
    case = first_case(spec)
    given = [term for term, arg in zip(spec.inputs, case.args, strict=True) if arg is not None]
    for i, term in enumerate(spec.inputs):
        tensor = case.args[i]
        if tensor is None:
            continue
        wrong_dtype = next(
            d for d in DTYPES.values() if d not in [DTYPES.get(n) for n in term.dtypes] + [tensor.dtype]
        )
        breakages = {"rank": tensor[None], "dtype": tensor.to(wrong_dtype)}
        for d, dim in enumerate(term.dims):
            free = (
                sum(dim in other.dims for other in given) == 1
                and dim.isidentifier()
                and term.dims.count(dim) == 1
            )
            if not free and tensor.size(d) > 0:
                breakages[f"dim{d}"] = tensor.narrow(d, 0, tensor.size(d) - 1)
        for how, broken in breakages.items():
            args = copies(case)
            args[i] = broken
            yield f"{term.name}-{how}", args, dict(case.kwargs)


def error_of(call: Any) -> tuple[type, str]:
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    return type(error.value), str(error.value).splitlines()[0]


def all_broken_calls() -> list[Any]:
    return [
        pytest.param(name, args, kwargs, id=f"{name}-{what}")
        for name, spec in sorted(OPS.items())
        for what, args, kwargs in broken_calls(spec)
    ]


def op_call(name: str) -> Any:
    return getattr(torch.ops.pyspec, name)
