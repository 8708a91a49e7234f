# SPDX-License-Identifier: Apache-2.0
"""Triton kernels, one file per op; installed as `pyspec.kernels`."""
