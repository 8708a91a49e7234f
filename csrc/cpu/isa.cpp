// SPDX-License-Identifier: Apache-2.0
// Choice of the instruction set at run time.
#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pyspec {
namespace {

bool available(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kGeneric:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni");
    default:
      return false;
  }
#elif defined(__aarch64__)
  return isa == Isa::kNeon;
#else
  return isa == Isa::kGeneric;
#endif
}

Isa choose() {
  constexpr Isa kBestFirst[] = {Isa::kAvx512, Isa::kAvx2, Isa::kNeon, Isa::kGeneric};
  const char* forced = std::getenv("PYSPEC_ISA");
  for (const Isa isa : kBestFirst) {
    if (forced && *forced && std::string(forced) != isa_name(isa)) continue;
    if (available(isa)) return isa;
  }
  std::string names;
  for (const Isa isa : kBestFirst)
    if (available(isa)) names += std::string(names.empty() ? "" : "|") + isa_name(isa);
  throw std::invalid_argument("PYSPEC_ISA: value must be " + names + ", got " + (forced ? forced : ""));
}

}  // namespace

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kNeon:
      return "neon";
    default:
      return "generic";
  }
}

std::string cpu_features() {
  std::string names;
#if defined(__x86_64__)
#define PYSPEC_FEATURE(name) \
  if (__builtin_cpu_supports(name)) names += std::string(names.empty() ? "" : " ") + name;
  PYSPEC_FEATURE("avx2")
  PYSPEC_FEATURE("fma")
  PYSPEC_FEATURE("f16c")
  PYSPEC_FEATURE("avx512f")
  PYSPEC_FEATURE("avx512bw")
  PYSPEC_FEATURE("avx512vnni")
  PYSPEC_FEATURE("avx512bf16")
#undef PYSPEC_FEATURE
#elif defined(__aarch64__)
  names = "neon";
#endif
  return names;
}

#if defined(__x86_64__)
FlushDenormals::FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(unsigned(saved_) | 0x8040u); }
FlushDenormals::~FlushDenormals() { _mm_setcsr(unsigned(saved_)); }
#elif defined(__aarch64__)
FlushDenormals::FlushDenormals() {
  asm volatile("mrs %0, fpcr" : "=r"(saved_));
  asm volatile("msr fpcr, %0" ::"r"(saved_ | uint64_t(1) << 24));
}
FlushDenormals::~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }
#else
FlushDenormals::FlushDenormals() : saved_(0) {}
FlushDenormals::~FlushDenormals() {}
#endif

}  // namespace pyspec
