# SPDX-License-Identifier: Apache-2.0
"""Other engines, each in an environment of its own, measured beside this one in the same run."""
