# SPDX-License-Identifier: Apache-2.0
"""`pyspec bench`: the same as `python -m bench` in the repository."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import click


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> int:
    """Run the bench NAME [--json FILE]: equality, e2e, or one of an op. `pyspec bench --help` lists them."""
    code: int = importlib.import_module(f"{package()}.__main__").run(arguments)
    return code


def package() -> str:
    """Where the benches are: in the installed package, or beside it in a source tree that is not installed."""
    if importlib.util.find_spec("pyspec.bench"):
        return "pyspec.bench"
    root = Path(__file__).parent.parent.parent
    if not (root / "bench" / "harness.py").is_file():
        raise click.ClickException(f"bench: pyspec.bench must be installed, got no benches in {root}")
    sys.path.insert(0, str(root))
    return "bench"
