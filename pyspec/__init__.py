# SPDX-License-Identifier: Apache-2.0
"""Exact and fast speculative decoding with token trees."""
