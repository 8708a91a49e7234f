# SPDX-License-Identifier: Apache-2.0
"""The linear ops at a small model's shapes and at 2048 x 2048, for decode, trees and prefill, against torch's bf16 linear.

The peer multiplies bf16 rows with the dequantised bf16 weight: two to four times the bytes, no quantisation of rows. Every result is checked
against the specification, and M = 1 against the last of M rows bit for bit, before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
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
    ("q4_1", 2048, 2048),
    ("q8_0", 2048, 2048),
    ("q4_1", 576, 1536),
    ("q8_0", 49152, 576),
    ("bf16", 576, 576),
]
ROWS = (1, 4, 8, 16, 64, 512)
Product = Callable[..., Tensor]


def rows(options: Options) -> Iterator[Row]:
    """Rows of us per call; GateError if a result is wrong."""
    backend = f"cpu-{native.cpu_isa()}" if native else "spec"
    for kind, n, k in [shape for shape in SHAPES if shape[1] < 2048] if options.quick else SHAPES:
        for m in ROWS[:2] if options.quick else ROWS:
            g = torch.Generator().manual_seed(m)
            x = torch.randn(m, k, generator=g)
            call, dense, cost = product(kind, n, k, x)
            name, label = ("linear_packed" if kind == "bf16" else "quant_linear"), f"{kind}-{n}x{k}-M{m}"
            check(label, call, x)
            peer = partial(torch.nn.functional.linear, x.bfloat16(), dense)
            times = measure({"own": partial(call, x), "torch": peer}, seconds=0.05 if options.quick else 0.5)
            time = times["own"]
            yield make_row(name, label, backend, "p20", time.p20 * 1e6, "us")
            yield make_row(
                name, label, backend, "time", time.p50 * 1e6, "us",
                peak_pct=peaks().percent(cost.bytes, cost.flops, time.p50),
                peer="torch bf16", ratio=time.p50 / times["torch"].p50,
            )  # fmt: skip
            yield make_row(name, label, backend, "p80", time.p80 * 1e6, "us")
            yield make_row(name, label, backend, "throughput", cost.flops / time.p50 / 1e9, "GOP/s")
            yield make_row(name, label, backend, "bandwidth", cost.bytes / time.p50 / 1e9, "GB/s")


def product(kind: str, n: int, k: int, x: Tensor) -> tuple[Product, Tensor, Cost]:
    """The op on packed weights as a function of x and backend, the same weight dense in bf16, and the floor of a call."""
    args: tuple[Tensor | None, ...]
    kwargs: dict[str, Any]
    if kind == "bf16":
        dense = torch.randn(n, k, generator=torch.Generator().manual_seed(n)).bfloat16()
        op, args, kwargs = spec.linear_packed, (x, ops.pack_weight(dense), None), {"num_rows": n}
    else:
        qweight = random_rows(kind, n, k)
        dense = dequantize(qweight, kind).bfloat16()
        op, args = spec.quant_linear, (x, ops.pack_quant_weight(qweight, format=kind), None)
        kwargs = {"format": kind, "layout": "packed", "num_rows": n}
    function = getattr(ops, op.name)
    assert op.cost is not None
    cost = op.cost(op.bind(args), *args, **kwargs)

    def call(x: Tensor, backend: str | None = None) -> Tensor:
        return function(x, args[1], backend=backend, **kwargs)

    return call, dense, cost


def check(label: str, call: Product, x: Tensor) -> None:
    """Near the specification (its first rows), and the last row alone equals the last row of all."""
    got, exact = call(x), call(x[:4], "spec")
    if native and not torch.equal(call(x[-1:])[0], got[-1]):
        raise GateError(f"linear: {label} must give equal bits for one row and for all, got others")
    if not torch.allclose(got[:4], exact, rtol=0, atol=1e-5 * float(exact.abs().max())):
        raise GateError(f"linear: {label} must equal its specification, got {(got[:4] - exact).abs().max()}")
