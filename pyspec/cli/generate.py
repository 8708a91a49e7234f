# SPDX-License-Identifier: Apache-2.0
"""`pyspec generate`: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import click

from pyspec.cli.answer import stream_answer
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
    "--json", "as_json", is_flag=True, help="Print one JSON object with text, tokens and statistics."
)
@click.option("--quiet", is_flag=True, help="No statistics on standard error.")
@sampling_options
@model_options
def generate(prompt: str, chat: bool | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Answer PROMPT (`-` reads standard input). Standard output is the text alone; statistics go to standard error."""
    params = sampling_params(options)  # before the model: bad values need no loading
    if prompt == "-":
        prompt = sys.stdin.read()
    llm = load_model(options, quiet=quiet)
    answer = stream_answer(llm, render_prompt(llm, prompt, chat), params, echo=not as_json)
    if as_json:
        record = asdict(answer) | {"model": options["model"], "backend": llm.executor_name}
        print(json.dumps(record))
    if not quiet:
        print(stats_line(llm, answer.stats, answer.finish_reason), file=sys.stderr)
