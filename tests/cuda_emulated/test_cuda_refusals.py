# SPDX-License-Identifier: Apache-2.0
"""The CUDA bindings of all ops refuse the calls that break a contract, with the specification's exception and words."""

from __future__ import annotations

from typing import Any

import pytest
from contract_tests import all_broken_calls, error_of
from cuda_emulator import emulator

from pyspec.contract import OPS


@pytest.mark.parametrize(("name", "args", "kwargs"), all_broken_calls())
def test_refuses_alike(name: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    if reason := emulator.missing(name):
        pytest.skip(reason)
    want = error_of(lambda: OPS[name].run(*args, **kwargs))
    assert error_of(lambda: emulator.call(name, *args, **kwargs)) == want
