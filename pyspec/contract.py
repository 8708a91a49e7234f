# SPDX-License-Identifier: Apache-2.0
"""The specification engine: a contract says an op's shapes and dtypes; schema, checks and fake are derived from it.

A contract is one argument a line: tensors first, then `*`, then keyword-only scalars, then the outputs:

    x         [M, K]     f32|bf16       letters bind to sizes; a letter bound twice must agree
    weight    [K]        like x         same dtype as x
    bias?     [K]        f32            may be None
    cache!    [P, S, K]  f32            written in place
    scale?!   [P, S]     f32            may be None, written in place
    cu_t      [B+1]      i32            arithmetic of bound letters, from left to right: (V+31)/32 rounds up
    *
    eps       float = 1e-6
    -> out    [M, K]     like x

Scalars are int, float, bool, str or dtype; output sizes may name int scalars. Nothing of the package but errors is imported here.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("pyspec", "FRAGMENT")
OPS: dict[str, OpSpec] = {}

DTYPES = {
    "f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16,
    "f8": torch.float8_e4m3fn, "i8": torch.int8, "u8": torch.uint8, "i32": torch.int32, "i64": torch.int64, "bool": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_SCHEMA_TYPES = {"int": "int", "float": "float", "bool": "bool", "str": "str", "dtype": "ScalarType"}
_TENSOR = re.compile(
    r"(?P<name>\w+)(?P<optional>\??)(?P<mutated>!?)\s+\[(?P<dims>[^\]]*)\]\s+(?P<dtype>like \w+|[\w|]+)"
)
_SCALAR = re.compile(r"(?P<name>\w+)\s+(?P<type>int|float|bool|str|dtype)(?:\s*=\s*(?P<default>\S+))?")
_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


@dataclass(frozen=True)
class Term:
    """One tensor of a contract."""

    name: str
    dims: tuple[str, ...]
    dtypes: tuple[str, ...]  # names of DTYPES, or ("like x",)
    optional: bool = False
    mutated: bool = False

    @property
    def shape(self) -> str:
        return f"[{', '.join(self.dims)}]"


@dataclass(frozen=True)
class Scalar:
    """One keyword-only scalar of a contract."""

    name: str
    type: str
    default: str | None


@dataclass(frozen=True)
class Case:
    """One call of an op, shared by tests and benches."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """What a call must move and compute at least: its floor on any machine."""

    bytes: int
    flops: int


@dataclass(frozen=True, eq=False)
class OpSpec:
    """An op: contract, reference, value check, shared cases, cost, and what each backend cannot do."""

    name: str
    inputs: tuple[Term, ...]
    scalars: tuple[Scalar, ...]
    outputs: tuple[Term, ...]
    reference: Callable[..., Any]
    check: Callable[..., None] | None
    cases: Callable[[], Iterable[Case]] | None
    cost: Callable[..., Cost] | None
    limits: Mapping[str, Callable[..., str | None]]
    derive: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]] | None

    @property
    def schema(self) -> str:
        """The torch.library schema, e.g. `rms_norm(Tensor x, Tensor weight, *, float eps=1e-6) -> Tensor`."""
        parts, alias = [], iter("abcdefgh")
        for i, term in enumerate(self.inputs):
            mutated = f"({next(alias)}!)" if term.mutated else ""
            default = "=None" if all(later.optional for later in self.inputs[i:]) else ""
            parts.append(f"Tensor{mutated}{'?' if term.optional else ''} {term.name}{default}")
        if self.scalars:
            parts.append("*")
        for scalar in self.scalars:
            default = "" if scalar.default is None else f"={scalar.default}"
            parts.append(f"{_SCHEMA_TYPES[scalar.type]} {scalar.name}{default}")
        outputs = ", ".join("Tensor" for _ in self.outputs)
        return f"{self.name}({', '.join(parts)}) -> {outputs if len(self.outputs) == 1 else f'({outputs})'}"

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> dict[str, int]:
        """Check tensors against the contract; return the size of every letter.

        Raises ValueError (rank, size, device) or TypeError (dtype, not a tensor) naming the argument, the rule and the value.
        """
        sizes: dict[str, tuple[int, str]] = {}
        first: tuple[torch.device, str] | None = None
        tensors: dict[str, Tensor | None] = {}
        args = self.complete(args)
        letters = self._letters(args)  # an expression may use a letter of a later tensor
        for term, tensor in zip(self.inputs, args, strict=True):
            tensors[term.name] = tensor
            if tensor is None and term.optional:
                continue
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{self.name}: {term.name} must be a tensor, got {type(tensor).__name__}")
            if tensor.dim() != len(term.dims):
                raise ValueError(f"{self.name}: {term.name} must be {term.shape}, got {list(tensor.shape)}")
            allowed = self._allowed(term, tensors)
            if tensor.dtype not in [DTYPES[name] for name in allowed]:
                got = DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype))
                raise TypeError(f"{self.name}: {term.name} must be {'|'.join(allowed)}, got {got}")
            first = first or (tensor.device, term.name)
            if tensor.device != first[0]:
                raise ValueError(
                    f"{self.name}: {term.name} must be on {first[0]} (from {first[1]}), got {tensor.device}"
                )
            for i, (dim, size) in enumerate(zip(term.dims, tensor.shape, strict=True)):
                if dim.isidentifier():
                    known, where = sizes.setdefault(dim, (size, f"{term.name}.size({i})"))
                    origin = f" (from {where})"
                else:
                    bound = set(re.findall(r"[A-Za-z_]\w*", dim)) <= letters.keys()
                    known, origin = _evaluate(dim, letters) if bound else size, ""
                if known != size:
                    raise ValueError(
                        f"{self.name}: {term.name} must be {term.shape} with {dim}={known}{origin}, "
                        f"got {list(tensor.shape)}"
                    )
        return {dim: size for dim, (size, _) in sizes.items()}

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Check shapes, dtypes and values, then compute the reference on any device."""
        sizes = self.bind(args, kwargs)
        if self.check is not None:
            self.check(sizes, *args, **kwargs)
        return self.reference(*args, **kwargs)

    def fake(self, *args: Any, **kwargs: Any) -> Any:
        """Outputs of the right shapes and dtypes without data (for torch.compile and export)."""
        sizes: dict[str, Any] = {
            s.name: kwargs.get(s.name, int(s.default or 0)) for s in self.scalars if s.type == "int"
        }
        args = self.complete(args)
        sizes.update(self._letters(args))
        if self.derive is not None:
            sizes.update(self.derive(sizes, kwargs))
        tensors = {term.name: tensor for term, tensor in zip(self.inputs, args, strict=True)}
        outputs = []
        for term in self.outputs:
            shape = [_evaluate(dim, sizes) for dim in term.dims]
            dtype = (
                kwargs["out_dtype"]
                if term.dtypes == ("out_dtype",)
                else DTYPES[self._allowed(term, tensors)[0]]
            )
            outputs.append(args[0].new_empty(shape, dtype=dtype))
        return outputs[0] if len(outputs) == 1 else tuple(outputs) if outputs else None

    def complete(self, args: Sequence[Any]) -> tuple[Any, ...]:
        """The tensors with None for those that are not given at the end."""
        return (*args, *(None,) * (len(self.inputs) - len(args)))

    def _letters(self, args: Sequence[Any]) -> dict[str, int]:
        """Sizes of the letters by the first tensor of the right rank that has them."""
        letters: dict[str, int] = {}
        for term, tensor in zip(self.inputs, args, strict=True):
            if isinstance(tensor, Tensor) and tensor.dim() == len(term.dims):
                for dim, size in zip(term.dims, tensor.shape, strict=True):
                    if dim.isidentifier():
                        letters.setdefault(dim, size)
        return letters

    def _allowed(self, term: Term, tensors: Mapping[str, Tensor | None]) -> tuple[str, ...]:
        if not term.dtypes[0].startswith("like "):
            return term.dtypes
        other = tensors[term.dtypes[0].removeprefix("like ")]
        assert other is not None  # `like` names a required tensor: _parse refuses others
        return (DTYPE_NAMES[other.dtype],)


def op(
    contract: str,
    *,
    check: Callable[..., None] | None = None,
    cases: Callable[[], Iterable[Case]] | None = None,
    cost: Callable[..., Cost] | None = None,
    limits: Mapping[str, Callable[..., str | None]] | None = None,
    derive: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]] | None = None,
) -> Callable[[Callable[..., Any]], OpSpec]:
    """Define `pyspec::<name>` from the decorated plain-PyTorch reference.

    `check(sizes, *args, **kwargs)` raises ValueError for bad values; `cost(sizes, *args, **kwargs)` gives the floor;
    `limits[backend](sizes, *args, **kwargs)` returns why a backend cannot run the call, or None;
    `derive(sizes, kwargs)` gives sizes of outputs that no expression of letters can (packed layouts).
    """

    def decorate(reference: Callable[..., Any]) -> OpSpec:
        inputs, scalars, outputs = _parse(contract)
        spec = OpSpec(
            reference.__name__, inputs, scalars, outputs, reference, check, cases, cost, limits or {}, derive
        )
        OPS[spec.name] = spec
        LIBRARY.define(spec.schema)
        LIBRARY.impl(spec.name, spec.run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"pyspec::{spec.name}", spec.fake, lib=LIBRARY)
        return spec

    return decorate


def _parse(contract: str) -> tuple[tuple[Term, ...], tuple[Scalar, ...], tuple[Term, ...]]:
    inputs: list[Term] = []
    scalars: list[Scalar] = []
    outputs: list[Term] = []
    in_scalars = False
    for line in (line.split("#")[0].strip() for line in contract.splitlines()):
        is_output = line.startswith("->")
        if not line or line == "*" or line == "->":
            in_scalars = in_scalars or line == "*"
            continue
        if not is_output and in_scalars:
            match = _SCALAR.fullmatch(line)
            if not match:
                raise ValueError(f"contract: line must be `name type [= default]`, got {line!r}")
            scalars.append(Scalar(match["name"], match["type"], match["default"]))
            continue
        match = _TENSOR.fullmatch(line.removeprefix("->").strip())
        if not match:
            raise ValueError(f"contract: line must be `name [dims] dtypes`, got {line!r}")
        dims = tuple(dim.strip() for dim in match["dims"].split(",") if dim.strip())
        dtypes = (match["dtype"],) if match["dtype"].startswith("like ") else tuple(match["dtype"].split("|"))
        term = Term(match["name"], dims, dtypes, bool(match["optional"]), bool(match["mutated"]))
        if dtypes[0].startswith("like ") and dtypes[0].removeprefix("like ") not in [
            t.name for t in inputs if not t.optional
        ]:
            raise ValueError(f"contract: `{dtypes[0]}` must name an earlier required tensor, got {line!r}")
        (outputs if is_output else inputs).append(term)
    return tuple(inputs), tuple(scalars), tuple(outputs)


def _evaluate(dim: str, sizes: Mapping[str, Any]) -> Any:
    """The value of `B+1`, `H*D`, `D/2` or a literal, left to right."""
    tokens = re.findall(r"\w+|[+*/-]", dim)
    value = int(tokens[0]) if tokens[0].isdigit() else sizes[tokens[0]]
    for sign, token in zip(tokens[1::2], tokens[2::2], strict=True):
        value = _OPERATORS[sign](value, int(token) if token.isdigit() else sizes[token])
    return value
