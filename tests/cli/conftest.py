# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the command line's tests."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from fake_llm import FakeLLM

import pyspec.drafts.heads.shipped
import pyspec.engine
from pyspec.cli import app


@dataclass(frozen=True)
class Result:
    """What a command line gave."""

    code: int
    out: str
    err: str


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeLLM]:
    """The fake model's class, fresh, in place of the engine's; no draft head comes with it."""
    fresh = type("FakeLLM", (FakeLLM,), {"made": []})
    monkeypatch.setattr(pyspec.engine, "LLM", fresh)
    monkeypatch.setattr(pyspec.drafts.heads.shipped, "shipped", lambda checkpoint: None)
    return fresh


@pytest.fixture
def pyspec_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Runs one command line in this process."""

    def run(*arguments: str, stdin: str = "") -> Result:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = app.run(arguments)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run
