// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10, and exp2 and log in plain float64 steps: the same bits as pyspec/spec/noise.py on every
// instruction set. Included once per kernel and instruction set, after cpu/kernel.h.
#pragma once

namespace pyspec::PYSPEC_ISA {

// F64: the doubles of one native vector. GCC's vector types give every set the same elementwise operations.
#if defined(PYSPEC_ISA_AVX512)
constexpr int kWide = 8;
#elif defined(PYSPEC_ISA_AVX2)
constexpr int kWide = 4;
#else
constexpr int kWide = 2;
#endif
typedef double F64 __attribute__((vector_size(8 * kWide)));
typedef uint64_t U64 __attribute__((vector_size(8 * kWide)));

constexpr double kLog2e = 1.4426950408889634, kLn2Hi = 0.6931471804855391, kLn2Lo = 7.440617110012397e-11;
constexpr double kMagic = 0x1.8p52;  // adding it rounds to an integer, which then stands in the lowest bits
constexpr double kExp2Lowest = -1000;
constexpr double kExp2[] = {0.6931471805599453,    0.24022650695910097,   0.0555041086648216,
                            0.009618129107606888,  0.0013333558146416936, 0.0001540353044173605,
                            1.525273382983612e-05, 1.321544258792169e-06, 1.0178062445845774e-07,
                            7.072585949269223e-09, 4.4549605981865186e-10};

template <typename To, typename From>
inline To bit_cast(const From& from) {
  To to;
  static_assert(sizeof to == sizeof from);
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline F64 widen(const float* p) {
#if defined(PYSPEC_ISA_AVX512)
  return _mm512_cvtps_pd(_mm256_loadu_ps(p));
#elif defined(PYSPEC_ISA_AVX2)
  return _mm256_cvtps_pd(_mm_loadu_ps(p));
#else
  return F64{double(p[0]), double(p[1])};
#endif
}

inline double at_least(double x, double lowest) { return x > lowest ? x : lowest; }
inline F64 at_least(F64 x, double lowest) {
#if defined(PYSPEC_ISA_AVX512)
  return _mm512_max_pd(x, _mm512_set1_pd(lowest));
#elif defined(PYSPEC_ISA_AVX2)
  return _mm256_max_pd(x, _mm256_set1_pd(lowest));
#else
  return x > lowest ? x : F64{} + lowest;
#endif
}

// 2^x for x <= 0; 2^-1000 below -1000. D, U: double and uint64_t, or F64 and U64.
template <typename D, typename U>
inline D exp2_negative(D x) {
  const D clamped = at_least(x, kExp2Lowest);
  const D shifted = clamped + kMagic;
  const D f = clamped - (shifted - kMagic);
  D q = D{} + kExp2[10];
  for (int i = 9; i >= 0; --i) q = q * f + kExp2[i];
  return bit_cast<D>(bit_cast<U>(q * f + 1.0) + (bit_cast<U>(shifted) << 52));
}

// The same in lanes: the shift and the conversion of the exponent go through numbers that are positive.
inline F64 log_positive(F64 x) {
  constexpr int kTerms = 11;
  constexpr uint64_t kBias = 2048;
  const U64 bits = bit_cast<U64>(x), k = ((bits - 0x3FE6A09E667F3BCD) + (kBias << 52)) >> 52;
  const F64 m = bit_cast<F64>(bits - ((k - kBias) << 52));
  const F64 s = (m - 1.0) / (m + 1.0), z = s * s;
  F64 q = F64{} + 1.0 / (2 * kTerms - 1);
  for (int n = kTerms - 2; n > 0; --n) q = q * z + 1.0 / (2 * n + 1);
  const F64 tail = q * z * s, kf = bit_cast<F64>(k + bit_cast<uint64_t>(0x1p52)) - (0x1p52 + double(kBias));
  return kf * kLn2Hi + (2.0 * s + (2.0 * tail + kf * kLn2Lo));
}

inline double log_positive(double x) {
  constexpr int kTerms = 11;
  const int64_t bits = bit_cast<int64_t>(x), k = (bits - 0x3FE6A09E667F3BCD) >> 52;
  const double m = bit_cast<double>(bits - int64_t(uint64_t(k) << 52));
  const double s = (m - 1.0) / (m + 1.0), z = s * s;
  double q = 1.0 / (2 * kTerms - 1);
  for (int n = kTerms - 2; n > 0; --n) q = q * z + 1.0 / (2 * n + 1);
  const double tail = q * z * s, kf = double(k);
  return kf * kLn2Hi + (2.0 * s + (2.0 * tail + kf * kLn2Lo));
}

constexpr double kMaxGumbel = 23;  // above gumbel(0) = 22.87, the largest noise
inline double gumbel(uint32_t r) {
  const double v = (double(r) + 0.5) * 0x1p-32;
  return -log_positive(-log_positive(1.0 - v));
}

// The product of the low 32 bits of every lane with b < 2^32.
inline U64 mul32(U64 a, uint64_t b) {
#if defined(PYSPEC_ISA_AVX512)
  return (U64)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(int64_t(b)));
#elif defined(PYSPEC_ISA_AVX2)
  return (U64)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(int64_t(b)));
#else
#if defined(__SSE2__)
  return (U64)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(int64_t(b)));
#else
  return (a & 0xffffffffu) * b;
#endif
#endif
}

// The random words of one request's token at one position.
class Noise {
 public:
  static constexpr int kTokens = 4 * kWide;  // that one call gives

  Noise(int64_t seed, int32_t stream, int64_t position)
      : position_(uint32_t(position)), stream_(uint32_t(stream)) {
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(uint64_t(seed) >> 32);
    for (auto& key : keys_) {
      key[0] = k0;
      key[1] = k1;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
  }

  // Words of the tokens first .. first + kTokens - 1, first a multiple of 4: word w of lane i is that of
  // token 4 i + w.
  struct Words {
    U64 w[4];
  };
  Words words(int64_t first) const {
    U64 group;
    for (int i = 0; i < kWide; ++i) group[i] = uint64_t(first / 4 + i);
    return words_of(group);
  }

  // Words of the tokens 4 group .. 4 group + 3 of every lane.
  Words words_of(U64 group) const {
    // Each 32-bit word stands in the low half of a lane; what the high halves hold does not matter until the
    // end.
    U64 c0 = group, c1 = U64{} + position_, c2 = U64{} + stream_, c3{};
    for (const auto& key : keys_) {
      const U64 low = mul32(c0, 0xD2511F53), high = mul32(c2, 0xCD9E8D57);
      c0 = high >> 32 ^ c1 ^ key[0];
      c1 = high;
      c2 = low >> 32 ^ c3 ^ key[1];
      c3 = low;
    }
    const U64 low_half = U64{} + 0xffffffffu;
    return {{c0 & low_half, c1 & low_half, c2 & low_half, c3 & low_half}};
  }

  uint32_t word(int64_t token) const { return uint32_t(words(token / 4 * 4).w[token % 4][0]); }

 private:
  uint64_t position_, stream_;
  uint64_t keys_[10][2];
};

}  // namespace pyspec::PYSPEC_ISA
