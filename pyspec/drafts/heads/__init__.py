# SPDX-License-Identifier: Apache-2.0
"""Draft heads: small networks on the target's hidden states."""
