# SPDX-License-Identifier: Apache-2.0
"""Distillation: an EAGLE-3-style draft head learnt from text that the target model itself has written."""
