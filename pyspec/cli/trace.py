# SPDX-License-Identifier: Apache-2.0
"""`pyspec trace`: one answer, and a page that shows every step's tree with the text."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyspec.cli.answer import stream_answers
from pyspec.cli.options import load_model, model_options, render_prompt, sampling_options, sampling_params

if TYPE_CHECKING:
    from pyspec.engine import SamplingParams


@click.command()
@click.argument("prompt")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("trace.html"), show_default=True,
    help="The page; replaced if it is there.",
)  # fmt: skip
@click.option(
    "--chat/--raw", default=None, help="Use the chat template, or not; default: if the model has one."
)
@click.option(
    "--alternatives", type=click.IntRange(0, 20), default=10, show_default=True,
    help="The target's likeliest tokens looked for among the children it did not take.",
)  # fmt: skip
@click.option("--quiet", is_flag=True, help="Do not print the answer.")
@sampling_options
@model_options
def trace(prompt: str, out: Path, chat: bool | None, alternatives: int, quiet: bool, **options: Any) -> int:
    """Answer PROMPT (`-` reads standard input) and write what every step drafted, accepted and rejected to an HTML page.

    The page needs no network and no other file. It holds the prompt and the answer.
    """
    from pyspec.models.tokenizer import StreamDecoder
    from pyspec.trace import Recorder, render_page, trace_data

    params = sampling_params(options)
    if prompt == "-":
        prompt = sys.stdin.read()
    llm = load_model(options, quiet=quiet)
    rendered = render_prompt(llm, prompt, chat)
    tokens = llm.tokenizer.encode(rendered) if isinstance(rendered, str) else rendered
    recorder = Recorder()
    with llm.observed_by(recorder):
        (answer,) = stream_answers(llm, tokens, replace(params, logprobs=alternatives), echo=not quiet)

    def pieces(ids: Iterable[int]) -> list[str]:
        decoder = StreamDecoder(llm.tokenizer, skip_special=False)
        return [decoder.push(token) for token in ids]

    single = lambda token: llm.tokenizer.decode([token], skip_special=False)
    about = {
        "model": str(options["model"]),
        "backend": llm.executor_name,
        "speculation": options["speculation"],
        "verifier": options["verifier"],
        "sampling": describe(params),
        "ended by": answer.finish_reason,
    }
    page = render_page(trace_data(recorder, tokens, answer.token_ids, single, pieces, about))
    out.write_text(page, encoding="utf-8")
    if not quiet:
        print(f"{len(recorder.records)} steps in {out}", file=sys.stderr)
    return int(bool(answer.error))


def describe(params: SamplingParams) -> str:
    """The parameters that are not at their defaults."""
    from pyspec.engine import SamplingParams

    usual = SamplingParams()
    names = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "stream_index")
    changed = {name: getattr(params, name) for name in names if getattr(params, name) != getattr(usual, name)}
    parts = [f"{name} {value}" for name, value in changed.items()] + list(params.edits)
    return ", ".join(parts) if params.temperature else ", ".join(["greedy", *params.edits])
