# SPDX-License-Identifier: Apache-2.0
"""The engine: requests, scheduler, KV pages, step programs and their executors, LLM."""

from __future__ import annotations

from pyspec.engine.grammar import Grammar
from pyspec.engine.llm import LLM
from pyspec.engine.request import Completion, RequestStats, StreamChunk
from pyspec.engine.sampling_params import SamplingParams

__all__ = ["LLM", "Completion", "Grammar", "RequestStats", "SamplingParams", "StreamChunk"]
