// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10, and exp and log in plain float64 steps: the same bits as pyspec/spec/noise.py on every
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
typedef float F32Half __attribute__((vector_size(4 * kWide)));

constexpr double kLog2e = 1.4426950408889634, kLn2Hi = 0.6931471804855391, kLn2Lo = 7.440617110012397e-11;
constexpr double kMagic = 0x1.8p52;  // adding it rounds to an integer, which then stands in the lowest bits
constexpr double kExpLowest = -700;
constexpr double kExp[] = {0.5000000000000001,     0.16666666666666669,    0.04166666666662413,
                           0.008333333333330062,   0.0013888888917213717,  0.00019841269863053618,
                           2.4801521295954376e-05, 2.7557268459997064e-06, 2.7620088445409746e-07,
                           2.510038549551032e-08};

template <typename To, typename From>
inline To bit_cast(const From& from) {
  To to;
  static_assert(sizeof to == sizeof from);
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// e^x for x <= 0; exactly 0 below -700. D, U: double and uint64_t, or F64 and U64.
template <typename D, typename U>
inline D exp_nonpositive(D x) {
  const D lowest = D{} + kExpLowest;
  const D clamped = x < lowest ? lowest : x;
  const D shifted = clamped * kLog2e + kMagic;
  const D k = shifted - kMagic;
  const D r = clamped - k * kLn2Hi - k * kLn2Lo;
  D q = D{} + kExp[9];
  for (int i = 8; i >= 0; --i) q = q * r + kExp[i];
  const D y = r * r * q + r + 1.0;
  const D scaled = bit_cast<D>(bit_cast<U>(y) + (bit_cast<U>(shifted) << 52));
  return x < lowest ? D{} : scaled;
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
  return (a & 0xffffffffu) * b;
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

  // Words of the tokens first .. first + kTokens - 1; first is a multiple of 4.
  void words(int64_t first, uint32_t* out) const {
    // Each 32-bit word stands in the low half of a lane; what the high halves hold does not matter until the
    // end.
    U64 c0, c1 = U64{} + position_, c2 = U64{} + stream_, c3{};
    for (int i = 0; i < kWide; ++i) c0[i] = uint64_t(first / 4 + i);
    for (const auto& key : keys_) {
      const U64 low = mul32(c0, 0xD2511F53), high = mul32(c2, 0xCD9E8D57);
      c0 = high >> 32 ^ c1 ^ key[0];
      c1 = high;
      c2 = low >> 32 ^ c3 ^ key[1];
      c3 = low;
    }
    const U64 even = (c0 & 0xffffffffu) | c1 << 32, odd = (c2 & 0xffffffffu) | c3 << 32;
#if defined(PYSPEC_ISA_AVX512)
    const U64 pairs[2] = {__builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11),
                          __builtin_shufflevector(even, odd, 4, 12, 5, 13, 6, 14, 7, 15)};
#elif defined(PYSPEC_ISA_AVX2)
    const U64 pairs[2] = {__builtin_shufflevector(even, odd, 0, 4, 1, 5),
                          __builtin_shufflevector(even, odd, 2, 6, 3, 7)};
#else
    const U64 pairs[2] = {U64{even[0], odd[0]}, U64{even[1], odd[1]}};
#endif
    std::memcpy(out, pairs, sizeof pairs);  // little-endian: token 4 i + w is word w of lane i
  }

  uint32_t word(int64_t token) const {
    uint32_t group[kTokens];
    words(token / 4 * 4, group);
    return group[token % 4];
  }

 private:
  uint64_t position_, stream_;
  uint64_t keys_[10][2];
};

}  // namespace pyspec::PYSPEC_ISA
