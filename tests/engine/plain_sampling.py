# SPDX-License-Identifier: Apache-2.0
"""The sampling parameters once more, written plainly: what the token behind a text must be, from the raw logits of its last token."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pyspec.engine import LLM, Completion, SamplingParams
from pyspec.spec import noise


def edited(
    row: NDArray[np.float32],
    prompt: Sequence[int],
    output: Sequence[int],
    params: SamplingParams,
    end_tokens: Collection[int],
    grammar: Collection[int] | None = None,
) -> NDArray[np.float32]:
    """Logits [V] after penalties, bias and masks. grammar: the tokens it allows here, None without one."""
    z = row.copy()
    repetition, frequency, presence = (
        float(np.float32(x))
        for x in (params.repetition_penalty, params.frequency_penalty, params.presence_penalty)
    )
    for token in set(prompt) | set(output):
        y = float(z[token])
        if repetition != 1:
            y = y / repetition if y > 0 else y * repetition
        if token in output:
            y = y - frequency * list(output).count(token) - presence
        z[token] = y
    for token, bias in dict(params.logit_bias).items():
        z[token] += np.float32(bias)
    keep = np.ones(len(z), dtype=bool)
    for tokens in (params.allowed_tokens, grammar):
        if tokens is not None:
            keep &= np.isin(np.arange(len(z)), list(tokens))
    keep[list(params.banned_tokens)] = False
    if len(output) < params.min_tokens:
        keep[list(end_tokens)] = False
    z[~keep] = -np.inf
    return z


def kept(z: NDArray[np.float32], params: SamplingParams) -> list[int]:
    """The tokens that a law at a temperature can give, the likeliest first."""
    d = (z.astype(np.float64) - z.max()) / np.float32(params.temperature)
    order = np.argsort(-z, kind="stable")
    p = np.exp(d)
    tokens = [token for token in order[: params.top_k or len(z)] if p[token] > 0]
    if params.top_p < 1:
        before = np.cumsum(p[tokens]) - p[tokens]
        limit = params.top_p * p[tokens].sum()
        tokens = [token for token, mass in zip(tokens, before, strict=True) if mass < limit]
    tokens = [token for token in tokens if p[token] >= params.min_p]
    if params.typical_p < 1:
        q = p[tokens] / p[tokens].sum()
        information = -np.log(np.maximum(q, 1e-300))
        entropy = (q * information).sum()
        typical = np.argsort(np.abs(information - entropy), kind="stable")
        count = int((np.cumsum(q[typical]) - q[typical] < params.typical_p).sum())
        tokens = [tokens[i] for i in typical[: max(1, count)]]
    return [int(token) for token in tokens]


def pick(z: NDArray[np.float32], params: SamplingParams, position: int, stream: int) -> int | None:
    """The token at a position; None if no logit is finite."""
    if not np.isfinite(z).any():
        return None
    if params.temperature == 0:
        return int(z.argmax())
    g = noise.gumbel(params.seed, stream, position, len(z), torch.device("cpu")).numpy()
    tokens = kept(z, params)
    score = (z[tokens].astype(np.float64) - z.max()) / np.float32(params.temperature) + g[tokens]
    return tokens[int(score.argmax())]


def check(
    llm: LLM,
    prompt: list[int],
    params: SamplingParams,
    done: Completion,
    grammar: dict[tuple[int, ...], Collection[int]] | None = None,
    same_noise: bool = True,
) -> None:
    """Assert that every token of an answer is the one that its own text calls for; or without same_noise, one that it allows.

    grammar: what may follow each beginning.
    """
    ends = {*params.stop_token_ids, *(() if params.ignore_eos else llm.config.eos_ids)}
    answer = done.token_ids
    rows = llm.prompt_logits(prompt + answer)[len(prompt) - 1 :].numpy()
    for i in range(len(answer) + (done.finish_reason == "error")):
        before = answer[:i]
        allowed = None if grammar is None else grammar[tuple(before)]
        z = edited(rows[i], prompt, before, params, ends, allowed)
        if i == len(answer):
            assert not np.isfinite(z).any(), "an error, but something is left"
        elif same_noise or params.temperature == 0:
            stream = params.stream_index + done.sample_index
            assert answer[i] == pick(z, params, len(prompt) + i, stream), f"token {i}"
        else:
            assert np.isfinite(z[answer[i]]), f"token {i} was banned"
            assert answer[i] in kept(z, params), f"token {i} was filtered out"
        assert i + 1 >= len(answer) or answer[i] not in ends, f"the answer goes on behind an end at {i}"
    if done.finish_reason == "length":
        assert len(answer) == params.max_tokens
    if done.finish_reason == "eos":
        assert answer[-1] in llm.config.eos_ids
