# SPDX-License-Identifier: Apache-2.0
"""The CUDA emulator: kernels of csrc/cuda executed on the CPU. Use `from cuda_emulator import emulator`."""
