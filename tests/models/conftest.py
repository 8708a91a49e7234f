# SPDX-License-Identifier: Apache-2.0
"""Open real models, once per session."""

from __future__ import annotations

import pytest
from real_models import cached_model

from pyspec.models import Checkpoint, open_checkpoint


@pytest.fixture(scope="session")
def smollm2() -> Checkpoint:
    return open_checkpoint(cached_model("smollm2-135m-instruct"))


@pytest.fixture(scope="session")
def gemma3() -> Checkpoint:
    return open_checkpoint(cached_model("gemma3-270m"))
