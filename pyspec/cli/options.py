# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and the engine objects made from them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pyspec.engine import LLM, RequestStats, SamplingParams

DEFAULT_MODEL = "smollm2-135m-instruct"
SPECULATION = ("off", "auto", "always", "suffix", "ngram")
VERIFIERS = ("shared_noise", "greedy", "target", "block", "top_down", "traversal")
EXECUTORS = ("auto", "cuda", "triton", "compiled", "spec")
MAX_GRAMMAR_BYTES = 1 << 20
_SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "logit_bias", "banned_tokens", "seed", "stream_index", "n", "max_tokens", "min_tokens", "stop", "stop_token_ids",
    "logprobs", "ignore_eos",
)  # fmt: skip
F = TypeVar("F", bound=Callable[..., Any])


def model_options(function: F) -> F:
    """Adds --model, --draft, --speculation, --verifier, --context, --executor and --threads."""
    for option in (
        click.option(
            "--executor", type=click.Choice(EXECUTORS), default="auto", show_default=True,
            help="What runs the model: kernels on a GPU, or on the CPU.",
        ),
        click.option("--threads", type=click.IntRange(1), help="Threads; default: the cores this process may use."),
        click.option("--context", type=click.IntRange(16), help="Longest prompt with its answer, in tokens."),
        click.option(
            "--verifier", type=click.Choice(VERIFIERS), default="shared_noise", show_default=True,
            help="shared_noise: the text of plain decoding; greedy: the same, at temperature 0 alone; others: another text of the "
            "same law, which depends on the drafts.",
        ),
        click.option(
            "--speculation", type=click.Choice(SPECULATION), default="auto", show_default=True,
            help="auto: trees of the drafts where they pay; the text does not depend on it, unless --verifier says so.",
        ),
        click.option(
            "--draft", "drafts", multiple=True, metavar="NAME|PATH",
            help="Who drafts: suffix (default), ngram, eagle3, mtp, layer_skip:0,1,28-29, a smaller model or a head's folder. "
            "Several are merged.",
        ),
        click.option(
            "--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME|PATH",
            help="Known name, GGUF file, or folder with config.json and safetensors.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


class TokenBias(click.ParamType):
    """ID=BIAS, as a pair."""

    name = "ID=BIAS"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> tuple[int, float]:
        token, _, bias = str(value).partition("=")
        try:
            return int(token), float(bias)
        except ValueError:
            self.fail(f"must be ID=BIAS such as 15=-2.5, got {value!r}", param, context)


def sampling_options(function: F) -> F:
    """Adds the options of SamplingParams that one answer has; their ranges are checked there."""
    number: dict[str, Any] = {"type": float, "show_default": True}
    tokens: dict[str, Any] = {"type": int, "multiple": True, "metavar": "ID"}
    for option in (
        click.option("--lark", help="Lark grammar that the answer must match; @FILE reads it."),
        click.option("--regex", help="Regular expression that the whole answer must match; @FILE reads it."),
        click.option("--json-schema", help="JSON schema that the answer must be valid by; @FILE reads it."),
        click.option("--ignore-eos", is_flag=True, help="Go on where the model would end."),
        click.option(
            "--stop-token", "stop_token_ids", **tokens, help="Token that ends the answer; several times."
        ),
        click.option("--stop", multiple=True, help="Text that ends the answer; may be given several times."),
        click.option("--allowed-token", "allowed_tokens", **tokens, help="Only these tokens; several times."),
        click.option("--banned-token", "banned_tokens", **tokens, help="Never this token; several times."),
        click.option(
            "--logit-bias", type=TokenBias(), multiple=True, help="Added to a token's logit; several times."
        ),
        click.option(
            "--frequency-penalty", default=0.0, **number, help="Per occurrence in the answer; 0 is off."
        ),
        click.option("--presence-penalty", default=0.0, **number, help="If in the answer; 0 is off."),
        click.option(
            "--repetition-penalty", default=1.0, **number, help="If in prompt or answer, a factor; 1 is off."
        ),
        click.option(
            "--stream-index", type=int, default=0, show_default=True, help="Which sample under one seed."
        ),
        click.option(
            "--seed", type=int, default=0, show_default=True, help="The same seed gives the same text."
        ),
        click.option("--min-tokens", type=int, default=0, show_default=True, help="Shortest answer."),
        click.option("--max-tokens", type=int, default=256, show_default=True, help="Longest answer."),
        click.option("--typical-p", default=1.0, **number, help="1 is off."),
        click.option("--min-p", default=0.0, **number, help="0 is off."),
        click.option("--top-p", default=1.0, **number, help="1 is off."),
        click.option("--top-k", type=int, default=0, show_default=True, help="0 is off."),
        click.option("--temperature", default=0.0, **number, help="0 is greedy."),
    ):
        function = option(function)
    return function


def sampling_params(options: dict[str, Any]) -> SamplingParams:
    """SamplingParams from the parsed options of a command."""
    from pyspec.engine import Grammar, SamplingParams

    values = {name: options[name] for name in _SAMPLING if name in options}
    given = [(kind, options[kind]) for kind in ("json_schema", "regex", "lark") if options[kind] is not None]
    if len(given) > 1:
        names = " and ".join("--" + kind.replace("_", "-") for kind, _ in given)
        raise click.UsageError(f"only one grammar may be given, got {names}")
    for kind, text in given:
        values["grammar"] = Grammar(kind, _text_or_file(text))
    return SamplingParams(**values, allowed_tokens=options["allowed_tokens"] or None)


def _text_or_file(text: str) -> str:
    if not text.startswith("@"):
        return text
    path = Path(text[1:])
    if path.stat().st_size > MAX_GRAMMAR_BYTES:
        raise ValueError(f"pyspec: a grammar's file must have at most {MAX_GRAMMAR_BYTES} bytes, got {path}")
    return path.read_text("utf-8")


def load_model(options: dict[str, Any], *, quiet: bool = False) -> LLM:
    """The model that the options name, fetched first if its name is known; ready for one request at a time, or for the samples that are asked for."""
    from pyspec.engine import LLM

    set_threads(options["threads"])
    note = not quiet and sys.stderr.isatty()
    if note:
        print(f"loading {options['model']} ...", end="\r", file=sys.stderr, flush=True)
    llm = LLM(
        options["model"],
        speculation=options["speculation"],
        draft=list(options.get("drafts") or ()) or None,
        max_context=options["context"],
        max_batch=min(options.get("n", 1), 8),
        executor=options.get("executor", "auto"),
        verifier=options.get("verifier", "shared_noise"),
    )
    if note:
        print("\x1b[2K", end="", file=sys.stderr, flush=True)
    return llm


def set_threads(threads: int | None) -> None:
    """Threads of the compiled kernels and of torch; None leaves both as they are."""
    if threads is None:
        return
    import torch

    from pyspec import backends

    torch.set_num_threads(threads)
    if backends.native is not None:
        backends.native.set_num_threads(threads)


def render_prompt(llm: LLM, text: str, chat: bool | None) -> str | list[int]:
    """The text as the model reads it: in its chat template if `chat`, as it is if not; None decides by the model."""
    if chat is None:
        chat = llm.checkpoint.chat_template is not None
    return llm.chat_prompt([{"role": "user", "content": text}]) if chat else text


def stats_line(llm: LLM, stats: RequestStats, finish_reason: str) -> str:
    """One line of statistics for stderr."""
    return (
        f"[{stats.output_tokens} tokens, {stats.tokens_per_second:.1f} tokens/s, "
        f"{stats.mean_accepted_length:.2f} a step; prompt {stats.prompt_tokens} tokens in {stats.prefill_seconds:.2f} s; "
        f"{llm.executor_name}; ended by {finish_reason}]"
    )
