# SPDX-License-Identifier: Apache-2.0
"""`pyspec generate`: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import click

from pyspec.cli.answer import stream_answers
from pyspec.cli.options import (
    load_model,
    model_options,
    render_prompt,
    sampling_options,
    sampling_params,
    stats_line,
)


@click.command()
@click.argument("prompt")
@click.option(
    "--chat/--raw", default=None, help="Use the chat template, or not; default: if the model has one."
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object per answer with text, tokens and statistics.",
)
@click.option(
    "--logprobs", type=int, help="With --json: log probabilities, and those of this many best tokens."
)
@click.option("--n", type=int, default=1, show_default=True, help="How many answers: samples of one seed.")
@click.option("--quiet", is_flag=True, help="No statistics on standard error.")
@sampling_options
@model_options
def generate(prompt: str, chat: bool | None, as_json: bool, quiet: bool, **options: Any) -> int:
    """Answer PROMPT (`-` reads standard input). Standard output is the text alone; statistics go to standard error.

    Exit code 1 if an answer ended with an error.
    """
    params = sampling_params(options)  # before the model: bad values need no loading
    if prompt == "-":
        prompt = sys.stdin.read()
    llm = load_model(options, quiet=quiet)
    answers = stream_answers(llm, render_prompt(llm, prompt, chat), params, echo=not as_json)
    for answer in answers:
        if as_json:
            record = asdict(answer) | {"model": options["model"], "backend": llm.executor_name}
            print(json.dumps(record))
        if answer.error:
            print(f"error: {answer.error}", file=sys.stderr)
        if not quiet:
            print(stats_line(llm, answer.stats, answer.finish_reason), file=sys.stderr)
    return int(any(answer.error for answer in answers))
