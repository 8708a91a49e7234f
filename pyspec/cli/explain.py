# SPDX-License-Identifier: Apache-2.0
"""`pyspec explain`: one answer, and why each of its steps had a tree, a chain or nothing."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from pyspec.cli.answer import stream_answers
from pyspec.cli.demo import PROMPT
from pyspec.cli.options import load_model, model_options, render_prompt, sampling_options, sampling_params


@click.command()
@click.argument("prompt", required=False)
@click.option(
    "--chat/--raw", default=None, help="Use the chat template, or not; default: if the model has one."
)
@click.option("--json", "as_json", is_flag=True, help="Print the counts as one JSON object.")
@sampling_options
@model_options
def explain(prompt: str | None, chat: bool | None, as_json: bool, **options: Any) -> int:
    """Answer PROMPT (`-` reads standard input; default: a text to summarise) and say what speculation did, and why.

    Standard output is the explanation; the answer goes to standard error.
    """
    params = sampling_params(options)
    prompt = PROMPT if prompt is None else sys.stdin.read() if prompt == "-" else prompt
    llm = load_model(options)
    answers = stream_answers(llm, render_prompt(llm, prompt, chat), params, echo=False)
    for answer in answers:
        print(answer.text, file=sys.stderr)
    print(json.dumps(llm.statistics().to_dict()) if as_json else llm.explain(), end="")
    return int(any(answer.error for answer in answers))
