# SPDX-License-Identifier: Apache-2.0
"""`pyspec bench`: the same as `python -m bench` in the repository."""

from __future__ import annotations

import importlib
import importlib.util

import click


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> int:
    """Run the bench NAME [--json FILE]: equality, e2e, or one of an op. `pyspec bench --help` lists them."""
    package = (
        "pyspec.bench" if importlib.util.find_spec("pyspec.bench") else "bench"
    )  # a source tree not installed
    try:
        runner = importlib.import_module(f"{package}.__main__")
    except ModuleNotFoundError as error:
        raise click.ClickException(f"bench: the benches are not installed ({error})") from None
    code: int = runner.run(arguments)
    return code
