# SPDX-License-Identifier: Apache-2.0
"""`python -m bench NAME`: finds bench_<name>.py, runs it, prints its table and saves its rows."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from pyspec.cli.options import DEFAULT_MODEL, set_threads

from .harness import GateError, Options, Row, append_csv, print_table, write_json

PREFIX = "bench_"


def names() -> list[str]:
    """Every bench there is."""
    found = pkgutil.iter_modules([str(Path(__file__).parent)])
    return sorted(module.name.removeprefix(PREFIX) for module in found if module.name.startswith(PREFIX))


def _list(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(part for part in value.split(",") if part)


def _numbers(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    parts = _list(context, parameter, value)
    if not parts or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"must be positive integers with commas, got {value!r}")
    return tuple(map(int, parts))


@click.command()
@click.argument("name", type=click.Choice(names()))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the rows to this file.")
@click.option(
    "--csv", "csv_file", type=click.Path(path_type=Path), help="Append them, with machine, commit and load."
)
@click.option("--quick", is_flag=True, help="Few cases and rounds: does it run, not how fast.")
@click.option("--threads", type=click.IntRange(1), help="Threads; default: the cores this process may use.")
@click.option("--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME|PATH")
@click.option(
    "--prompts",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="How many; acceptance and speculation: of each set.",
)
@click.option(
    "--skip",
    type=click.IntRange(0),
    default=0,
    help="equality: prompts to leave out at the start, to go on from there.",
)
@click.option(
    "--max-tokens", type=click.IntRange(2), default=128, show_default=True, help="Tokens an answer."
)
@click.option("--batch", callback=_numbers, default="1,8", show_default=True, help="equality: batch sizes.")
@click.option(
    "--mode",
    callback=_list,
    default="tree,random,sampled",
    show_default=True,
    help="equality: what is compared.",
)
@click.option("--all", is_flag=True, help="equality: every mode, at batch sizes 1, 8 and 32.")
@click.option(
    "--only",
    callback=_list,
    default="",
    metavar="PATTERNS",
    help="acceptance, speculation, e2e --peers: cases that match one of these, with * and ?, such as '*eagle3*,suffix*'.",
)
@click.option(
    "--peers",
    callback=_list,
    default="",
    metavar="NAMES",
    help="e2e, contention: beside these engines, or all.",
)
@click.option(
    "--install", callback=_list, default="", metavar="NAMES", help="peers: make these environments, or all."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0),
    help="equality, acceptance, speculation: stop after this time and report what is done.",
)
def main(
    name: str, json_file: Path | None, csv_file: Path | None, threads: int | None, **rest: object
) -> int:
    """Run the bench NAME; exit code 1 if what it checks is wrong. A CSV file gets every row when it is measured."""
    set_threads(threads)
    module = importlib.import_module(f".{PREFIX}{name}", __package__)
    rows: list[Row] = []
    failure: BaseException | None = None
    try:
        for row in module.rows(Options(threads=threads, **rest)):  # type: ignore[arg-type]
            rows.append(row)
            if csv_file:
                append_csv(csv_file, [row], threads or torch.get_num_threads())
    except (GateError, KeyboardInterrupt) as error:
        failure = error
    if rows:
        getattr(module, "print_rows", print_table)(rows)
        if json_file:
            write_json(json_file, rows)
    if failure:
        raise failure
    return 0


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    from pyspec.cli.app import invoke

    return invoke(main, "python -m bench", sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(run())
