# SPDX-License-Identifier: Apache-2.0
"""What runs inside a peer's own environment: one adapter a library, and the loop that answers requests (`python -m workers NAME`).

Nothing of this package but the two adapters of pyspec itself imports pyspec: a peer's environment does not have it.
"""
