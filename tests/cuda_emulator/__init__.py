# SPDX-License-Identifier: Apache-2.0
"""The CUDA emulator: the kernels of csrc/cuda executed on the CPU. Tests use `from cuda_emulator import emulator`."""
