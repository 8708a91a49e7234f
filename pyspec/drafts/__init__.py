# SPDX-License-Identifier: Apache-2.0
"""Drafts: what proposes token trees."""

from __future__ import annotations

from .base import Draft, DraftState, Proposal
from .ngram import NgramDraft
from .suffix import SuffixDraft

__all__ = ["Draft", "DraftState", "NgramDraft", "Proposal", "SuffixDraft"]
