# SPDX-License-Identifier: Apache-2.0
"""The linear ops at a small model's shapes and at 2048 x 2048, for decode, trees and prefill, against torch's bf16 linear.

Weights are cold: copies of one weight, together larger than the caches, are multiplied in turn, as the layers of a model are. The
peer multiplies bf16 rows with the dequantised bf16 weight: two to four times the bytes, no quantisation of rows. Every result is checked against
the specification, and M = 1 against the last of M rows bit for bit, before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from pyspec import ops, spec
from pyspec.backends import native
from pyspec.contract import Cost
from pyspec.spec.pack_quant_weight import random_rows
from pyspec.spec.quant_formats import dequantize

from .harness import GateError, Options, Row, make_row, measure, peaks

SHAPES = [
    ("q4_1", 1536, 576),
    ("q4_1", 2048, 2048),
    ("q8_0", 49152, 576),
    ("w8a8", 2048, 2048),
    ("w4a16", 2048, 2048),
    ("bf16", 576, 576),
]
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
NAMES = {"bf16": "linear_packed", "w8a8": "w8a8_linear_packed", "w4a16": "w4a16_linear"}
COLD_BYTES = 128 << 20  # of all copies: more than the caches of one processor
Product = Callable[..., Tensor]


def rows(options: Options) -> Iterator[Row]:
    """Rows of us per call, and of the ratio to one row; GateError if a result is wrong."""
    backend = f"cpu-{native.cpu_isa()}" if native else "spec"
    for kind, n, k in [shape for shape in SHAPES if shape[1] < 2048] if options.quick else SHAPES:
        one = 0.0
        for m in ROWS[:3] if options.quick else ROWS:
            x = torch.randn(m, k, generator=torch.Generator().manual_seed(m))
            name, label = NAMES.get(kind, "quant_linear"), f"{kind}-{n}x{k}-M{m}"
            call, weights, dense, cost = product(kind, n, k, x)
            check(label, call, x, weights[0])
            peer = in_turn(torch.nn.functional.linear, x.bfloat16(), dense)
            own = in_turn(call, x, weights)
            time = measure({"own": own, "torch": peer}, seconds=0.05 if options.quick else 0.2)
            p50 = time["own"].p50
            one = one or p50
            yield make_row(
                name, label, backend, "time", p50 * 1e6, "us", peak_pct=peaks().percent(cost.bytes, cost.flops, p50),
                peer="torch bf16", ratio=p50 / time["torch"].p50,
            )  # fmt: skip
            yield make_row(name, label, backend, "p20", time["own"].p20 * 1e6, "us")
            yield make_row(name, label, backend, "to_one_row", p50 / one, "")
            yield make_row(name, label, backend, "throughput", cost.flops / p50 / 1e9, "GOP/s")
            yield make_row(name, label, backend, "bandwidth", cost.bytes / p50 / 1e9, "GB/s")


def product(kind: str, n: int, k: int, x: Tensor) -> tuple[Product, list[Tensor], list[Tensor], Cost]:
    """The op as a function of float rows, a weight and a backend; copies of the weight and of it in bf16; the floor of a call."""
    g = torch.Generator().manual_seed(n)
    args: tuple[Tensor | None, ...]
    extra: tuple[Tensor, ...] = ()
    kwargs: dict[str, Any] = {}
    if kind == "bf16":
        dense = torch.randn(n, k, generator=g).bfloat16()
        op, args, kwargs = spec.linear_packed, (x, ops.pack_weight(dense), None), {"num_rows": n}
    elif kind == "w8a8":
        weight, scale = (
            torch.randint(-127, 128, (n, k), generator=g, dtype=torch.int8),
            torch.full((n,), 0.01),
        )
        dense = (weight * scale[:, None]).bfloat16()
        op, kwargs = spec.w8a8_linear_packed, {"out_dtype": torch.float32}
        args, extra = (int8(x), ops.pack_int8_weight(weight), torch.ones(len(x)), scale), (scale,)
    elif kind == "w4a16":
        qweight = torch.randint(0, 256, (n, k // 2), generator=g, dtype=torch.uint8)
        scales = torch.full((n, k // 128), 0.01).half()
        dense = spec.w4a16_linear.reference(torch.eye(k), qweight, scales, group_size=128).T.bfloat16()
        op, args, kwargs = spec.w4a16_linear, (x, qweight, scales), {"group_size": 128}
        extra = (scales,)
    else:
        qweight = random_rows(kind, n, k)
        dense = dequantize(qweight, kind).bfloat16()
        op, args = spec.quant_linear, (x, ops.pack_quant_weight(qweight, format=kind), None)
        kwargs = {"format": kind, "layout": "packed", "num_rows": n}
    function, weight = getattr(ops, op.name), args[1]
    assert op.cost is not None
    assert weight is not None

    def call(x: Tensor, weight: Tensor, backend: str | None = None) -> Tensor:
        if kind == "w8a8":
            return function(int8(x), weight, torch.ones(len(x)), *extra, backend=backend, **kwargs)
        return function(x, weight, *extra, backend=backend, **kwargs)

    copies = lambda t: [t, *(t.clone() for _ in range(COLD_BYTES // (t.numel() * t.element_size())))]
    return call, copies(weight), copies(dense), op.cost(op.bind(args), *args, **kwargs)


def in_turn(call: Product, x: Tensor, weights: list[Tensor]) -> Callable[[], Tensor]:
    """A call with the next of the weights, every time."""
    turn = cycle(weights)
    return lambda: call(x, next(turn))


def int8(x: Tensor) -> Tensor:
    """Normal numbers as int8 rows."""
    return (x * 40).clamp(-127, 127).to(torch.int8)


def check(label: str, call: Product, x: Tensor, weight: Tensor) -> None:
    """Near the specification (its first rows), and the last row alone equals the last row of all."""
    got, exact = call(x, weight), call(x[:4], weight, "spec")
    if native and not torch.equal(call(x[-1:], weight)[0], got[-1]):
        raise GateError(f"linear: {label} must give equal bits for one row and for all, got others")
    if not torch.allclose(got[:4], exact, rtol=0, atol=1e-5 * float(exact.abs().max())):
        raise GateError(f"linear: {label} must equal its specification, got {(got[:4] - exact).abs().max()}")
