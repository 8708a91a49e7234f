// SPDX-License-Identifier: Apache-2.0
// Whether products of bf16 can be used: the machine has VDPBF16PS, and its results are those of two FMAs with
// denormals flushed, the odd element's first (what Intel's manual says it computes).
#include <cmath>
#include <cstring>

#include "cpu/isa.h"
#include "pyspec/dtype.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pyspec {
namespace {

#if defined(__x86_64__)

struct Random {
  uint32_t state = 12345;
  uint32_t operator()() { return (state = state * 1664525u + 1013904223u) >> 8; }
};

// Two sums are alike: the same bits, or NaN both.
bool alike(float a, float b) {
  return std::memcmp(&a, &b, sizeof a) == 0 || (std::isnan(a) && std::isnan(b));
}

// 16 sums of exponents up to `range` from that of 1: near each other they round and cancel, far apart they
// overflow and underflow.
__attribute__((target("avx512f,avx512bf16"))) bool same_products(Random& random, uint32_t range) {
  const auto element = [&](int fraction) {
    const uint32_t exponent = 127 + random() % (2 * range + 1) - range;
    return (random() & 1) << (8 + fraction) | exponent << fraction | (random() & ((1u << fraction) - 1));
  };
  alignas(64) uint32_t a[16], b[16];
  alignas(64) float sums[16], got[16];
  for (int i = 0; i < 16; ++i) {
    a[i] = element(7) << 16 | element(7);
    b[i] = element(7) << 16 | element(7);
    sums[i] = random() % 8 ? bits_to_f32(element(23)) : 0.0f;
  }
  const __m512i pairs = _mm512_load_si512(a), others = _mm512_load_si512(b);
  _mm512_store_ps(got, _mm512_dpbf16_ps(_mm512_load_ps(sums), __m512bh(pairs), __m512bh(others)));
  const auto half = [](uint32_t pair, bool odd) { return bf16_to_f32(uint16_t(odd ? pair >> 16 : pair)); };
  for (int i = 0; i < 16; ++i) {
    const float first = std::fma(half(a[i], true), half(b[i], true), sums[i]);
    if (!alike(std::fma(half(a[i], false), half(b[i], false), first), got[i])) return false;
  }
  return true;
}

std::string check() {
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bf16"))
    return "this CPU has no AVX-512 BF16";
  const FlushDenormals flush;
  Random random;
  for (const uint32_t range : {2u, 8u, 30u, 127u})
    for (int i = 0; i < 200; ++i)
      if (!same_products(random, range)) return "its products differ from those of FMAs on this machine";
  return "";
}

#else
std::string check() { return "AVX-512 BF16 needs x86-64"; }
#endif

}  // namespace

const std::string& bf16_reason() {
  static const std::string reason = check();
  return reason;
}

}  // namespace pyspec
