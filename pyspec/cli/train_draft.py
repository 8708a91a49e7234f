# SPDX-License-Identifier: Apache-2.0
"""`pyspec train-draft`: distil an EAGLE-3-style draft head from text that the model itself writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pyspec.cli.options import DEFAULT_MODEL, set_threads
from pyspec.training.options import DTYPES, TrainOptions

_DEFAULT = TrainOptions()
# Options of the command that are fields of TrainOptions: name, type, help.
_FIELDS: tuple[tuple[str, click.ParamType, str], ...] = (
    ("steps", click.INT, "Optimiser steps."),
    ("batch_rows", click.INT, "Answer tokens of a step."),
    ("max_length", click.INT, "Tokens of a text; the rest is cut off."),
    ("unroll", click.INT, "Draft steps trained, each on the head's own outputs."),
    ("single", click.FLOAT, "Part of the steps, the first, in which one draft step is trained."),
    ("decay", click.FLOAT, "Draft step k weighs decay to the power of k."),
    ("intermediate_size", click.INT, "Width of the head's feed-forward block."),
    ("draft_vocab_size", click.INT, "Tokens that the head can draft."),
    ("learning_rate", click.FLOAT, "Highest learning rate of AdamW."),
    ("warmup", click.FLOAT, "Part of the steps in which the learning rate rises."),
    ("weight_decay", click.FLOAT, "Of AdamW, on matrices."),
    ("clip", click.FLOAT, "Largest norm of a gradient."),
    ("dtype", click.Choice(DTYPES), "What matrices are multiplied in."),
    ("seed", click.INT, "Of prompts, answers, weights and order."),
    ("held_out", click.INT, "One sample in this many is for validation."),
    ("validate_every", click.INT, "Steps between validations, and rows of the log."),
    ("save_every", click.INT, "Steps between checkpoints."),
)


def _with_fields(function: Any) -> Any:
    for name, kind, text in reversed(_FIELDS):
        option = click.option(
            "--" + name.replace("_", "-"),
            type=kind,
            default=getattr(_DEFAULT, name),
            show_default=True,
            help=text,
        )
        function = option(function)
    return function


def _taps(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    parts = value.split(",")
    if not all(part.isdigit() for part in parts):
        raise click.BadParameter(f"must be layers as in 2,15,27, got {value!r}")
    return tuple(int(part) for part in parts)


@click.command("train-draft")
@click.option("--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME|PATH", help="The target.")
@click.option(
    "--data", multiple=True, type=click.Path(path_type=Path),
    help="JSON lines, or a folder of shards, with prompts and answers; missing answers are written by the model.",
)  # fmt: skip
@click.option(
    "--self-generate", type=click.IntRange(0), default=0, show_default=True, metavar="N",
    help="Answer tokens that the model writes to prompts of its own.",
)  # fmt: skip
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the head."
)
@click.option(
    "--name", default="", help="What the head's config.json calls the target; default: the model's file."
)
@click.option("--taps", callback=_taps, metavar="I,J,K", help="Tapped layers; default: 2, n/2 and n-3.")
@click.option("--resume", is_flag=True, help="Go on with what is in the folder.")
@click.option("--int8/--bf16", default=True, show_default=True, help="How the head's matrices are stored.")
@click.option(
    "--batch", type=click.IntRange(1, 1024), default=32, show_default=True, help="Texts written at once."
)
@click.option(
    "--context", type=click.IntRange(16), default=1024, show_default=True, help="Longest text, in tokens."
)
@click.option("--threads", type=click.IntRange(1), help="Threads; default: the cores this process may use.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
@_with_fields
def train_draft(
    model: str, data: tuple[Path, ...], self_generate: int, out: Path, name: str, taps: tuple[int, ...] | None,
    resume: bool, int8: bool, batch: int, context: int, threads: int | None, quiet: bool, **fields: Any,
) -> None:  # fmt: skip
    """Train an EAGLE-3-style draft head for a model, on text that the model writes itself.

    The same options, data and threads give the same head, also when the run was stopped and resumed.
    """
    options = TrainOptions(taps=taps, **fields)
    from pyspec.engine import LLM
    from pyspec.models.checkpoint import open_checkpoint
    from pyspec.models.fetch import resolve_model
    from pyspec.training.run import TrainJob
    from pyspec.training.run import train_draft as train

    job = TrainJob(
        out,
        data,
        self_generate,
        name or (model if not Path(model).exists() else ""),
        resume,
        int8,
        not quiet,
        options,
    )
    set_threads(threads)
    checkpoint = open_checkpoint(resolve_model(model))
    llm = LLM(
        checkpoint, speculation="off", max_batch=batch, max_context=min(context, checkpoint.config.max_position),
        max_nodes=1,
    )  # fmt: skip
    report = train(llm, job)
    figures = report["validation"]
    drafts = ", ".join(f"{share:.1%}" for share in figures["accepted_up_to_draft"])
    print(
        f"{out}: {report['parameters'] / 1e6:.2f} M weights, {report['coverage']:.1%} of tokens can be drafted"
    )
    print(
        f"validation: {drafts} accepted up to draft 1, 2, ...; mean accepted length {figures['mean_accepted_length']:.2f}"
    )
    if not report["curves"]:
        print("no curves.png: matplotlib must be installed (pip install 'pyspec-kernels[train]')")
