# SPDX-License-Identifier: Apache-2.0
"""pack_weight: where every element lies, and nothing else."""

from __future__ import annotations

import pytest
import torch

from pyspec import ops, spec
from pyspec.contract import Case


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in spec.pack_weight.cases()])
def test_packed_layout(case: Case) -> None:
    (weight,) = case.args
    n, k = weight.shape
    for packed in (spec.pack_weight.run(weight), ops.pack_weight(weight)):
        assert packed.shape == ((n + 15) // 16, (k + 1) // 2 * 32)
        flat = packed.flatten()
        for i, j in ((0, 0), (n - 1, k - 1), (n // 2, k // 3)):
            if n and k:
                pairs = weight.dtype == torch.bfloat16
                at = j // 2 * 32 + i % 16 * 2 + j % 2 if pairs else j * 16 + i % 16
                assert flat[i // 16 * packed.size(1) + at] == weight[i, j]
        assert float(packed.double().sum()) == pytest.approx(float(weight.double().sum()), rel=1e-12)
    assert torch.equal(spec.pack_weight.run(weight), ops.pack_weight(weight))
