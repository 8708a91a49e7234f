// SPDX-License-Identifier: Apache-2.0
// Choice of the instruction set at run time.
#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace pyspec {
namespace {

#if defined(__aarch64__)
enum class Feature { kDotprod, kI8mm };

bool has(Feature feature) {
#if defined(__APPLE__)
  int present = 0;
  size_t size = sizeof present;
  const char* name =
      feature == Feature::kDotprod ? "hw.optional.arm.FEAT_DotProd" : "hw.optional.arm.FEAT_I8MM";
  return sysctlbyname(name, &present, &size, nullptr, 0) == 0 && present;
#elif defined(__linux__)
  constexpr unsigned long kAsimdDp = 1ul << 20, kI8mm = 1ul << 13;  // of HWCAP, of HWCAP2
  return feature == Feature::kDotprod ? getauxval(AT_HWCAP) & kAsimdDp : getauxval(AT_HWCAP2) & kI8mm;
#else
  return false;
#endif
}
#endif

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
    case Isa::kAvx512Bf16:
      return available(Isa::kAvx512) && bf16_reason().empty();
    case Isa::kAmx:
      return amx_reason().empty();
    default:
      return false;
  }
#elif defined(__aarch64__)
  switch (isa) {
    case Isa::kNeon:
      return true;
    case Isa::kNeonDotprod:
      return has(Feature::kDotprod);
    case Isa::kNeonI8mm:
      return has(Feature::kDotprod) && has(Feature::kI8mm);
    default:
      return false;
  }
#else
  return isa == Isa::kGeneric;
#endif
}

Isa choose() {
  constexpr Isa kBestFirst[] = {Isa::kAmx,      Isa::kAvx512Bf16,  Isa::kAvx512, Isa::kAvx2,
                                Isa::kNeonI8mm, Isa::kNeonDotprod, Isa::kNeon,   Isa::kGeneric};
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
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kAmx:
      return "amx";
    case Isa::kNeon:
      return "neon";
    case Isa::kNeonDotprod:
      return "neon_dotprod";
    case Isa::kNeonI8mm:
      return "neon_i8mm";
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
  if (amx_reason().empty()) names += " amx";
#elif defined(__aarch64__)
  names = "neon";
  if (has(Feature::kDotprod)) names += " dotprod";
  if (has(Feature::kI8mm)) names += " i8mm";
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
