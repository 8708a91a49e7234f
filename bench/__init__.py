# SPDX-License-Identifier: Apache-2.0
"""Benches: `python -m bench NAME [--json FILE]`."""
