# SPDX-License-Identifier: Apache-2.0
"""Traces: every step of an answer as a page that a browser shows without a network."""

from __future__ import annotations

from .page import render_page
from .recorder import Recorder, trace_data

__all__ = ["Recorder", "render_page", "trace_data"]
