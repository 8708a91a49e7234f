# SPDX-License-Identifier: Apache-2.0
"""`pyspec tune`: measures launches of the Triton kernels on the GPU at hand and keeps the faster ones."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import click

DEFAULT_SHAPES = ("4096,4096", "6144,4096", "28672,4096", "4096,14336")  # an 8B model
DEFAULT_ROWS = (1, 4, 16, 64, 512)


class CannotTune(click.ClickException):
    """This machine lacks what tuning needs: exit code 3."""

    exit_code = 3


def _shape(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> list[tuple[int, int]]:
    shapes = []
    for value in values:
        parts = value.split(",")
        if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
            raise click.BadParameter(f"must be N,K, got {value!r}")
        shapes.append((int(parts[0]), int(parts[1])))
    return shapes


@click.command()
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    default=DEFAULT_SHAPES,
    show_default=True,
    callback=_shape,
    metavar="N,K",
)
@click.option("--rows", multiple=True, type=click.IntRange(1), default=DEFAULT_ROWS, show_default=True)
@click.option(
    "--kernel", "kernels", multiple=True, help="Only these, e.g. linear; default: all that can be tuned."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Default: the table that the kernels read.",
)
def tune(
    shapes: list[tuple[int, int]], rows: tuple[int, ...], kernels: tuple[str, ...], output: Path | None
) -> None:
    """Measure launches of Triton's linear kernels on this GPU and keep those that are faster and give the same bits.

    Without a CUDA GPU and triton it exits with 3.
    """
    import torch

    if importlib.util.find_spec("triton") is None:
        raise CannotTune("tune: triton must be installed")
    if not torch.cuda.is_available():
        raise CannotTune(f"tune: a CUDA GPU must be here, got none (torch {torch.__version__})")
    from pyspec import tuning

    tuned = importlib.import_module("pyspec.kernels.tuned")
    found = []
    for call in tuning.calls(rows, shapes, "cuda"):
        if kernels and call.kernel not in kernels:
            continue
        key, fields = tuned.key(*call.pick), tuning.tune(call)
        print(f"{call.kernel} [{key}]: {fields or 'as it is'}", flush=True)
        found.append((call.kernel, key, fields))
    path = output or tuned.FILE
    tuning.save(path, tuned.gpu(), found)
    print(f"{sum(bool(fields) for *_, fields in found)} of {len(found)} launches are faster: {path}")
