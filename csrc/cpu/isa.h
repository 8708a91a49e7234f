// SPDX-License-Identifier: Apache-2.0
// Instruction sets of the CPU kernels, and flushing of denormals.
#pragma once

#include <cstdint>
#include <string>

namespace pyspec {

enum class Isa { kGeneric, kAvx2, kAvx512, kAvx512Bf16, kAmx, kNeon, kNeonDotprod, kNeonI8mm };

// The best instruction set that this machine and this build have, or the one that PYSPEC_ISA forces.
// Throws std::invalid_argument when PYSPEC_ISA names one that is unknown or not available here.
Isa active_isa();
const char* isa_name(Isa isa);
// Why AMX is not offered here; empty if it is. The first call asks the system for the use of tiles and
// compares the kernels' results on small cases with those of AVX-512, bit for bit (cpu/amx_check.cpp).
const std::string& amx_reason();
// Why products of bf16 (AVX-512 BF16) are not offered here; empty if they are. The first call compares them
// with the pairs of FMAs that other instruction sets compute (cpu/bf16_check.cpp).
const std::string& bf16_reason();
// Names of the machine's features that matter to the kernels, separated by spaces.
std::string cpu_features();

// Sets flush-to-zero and denormals-are-zero for the life of the object: what AMX does always, so that every
// instruction set treats denormals alike.
class FlushDenormals {
 public:
  FlushDenormals();
  ~FlushDenormals();
  FlushDenormals(const FlushDenormals&) = delete;

 private:
  uint64_t saved_;
};

}  // namespace pyspec
