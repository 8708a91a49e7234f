// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10, and exp2 and log in plain float64 steps: the bits of pyspec/spec/noise.py. Every operation
// is one rounding there, so nothing here may be contracted (-fmad=false) or replaced by a library function.
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"

namespace pyspec::cuda {

constexpr double kLog2e = 1.4426950408889634;
constexpr double kMaxGumbel = 23;  // above gumbel(0) = 22.87, the largest noise

// 2^x for x <= 0; 2^-1000 below -1000.
__device__ inline double exp2_negative(double x) {
  constexpr double kMagic = 0x1.8p52;  // adding it rounds to an integer, which then stands in the lowest bits
  constexpr double kLowest = -1000;
  constexpr double kCoefficients[] = {0.6931471805599453,    0.24022650695910097,   0.0555041086648216,
                                      0.009618129107606888,  0.0013333558146416936, 0.0001540353044173605,
                                      1.525273382983612e-05, 1.321544258792169e-06, 1.0178062445845774e-07,
                                      7.072585949269223e-09, 4.4549605981865186e-10};
  const double clamped = x > kLowest ? x : kLowest;
  const double shifted = clamped + kMagic;
  const double f = clamped - (shifted - kMagic);
  double q = kCoefficients[10];
#pragma unroll
  for (int i = 9; i >= 0; --i) q = q * f + kCoefficients[i];
  const auto exponent = uint64_t(__double_as_longlong(shifted)) << 52;
  return __longlong_as_double(int64_t(uint64_t(__double_as_longlong(q * f + 1.0)) + exponent));
}

// The natural logarithm of a positive normal number.
__device__ inline double log_positive(double x) {
  constexpr double kLn2Hi = 0.6931471804855391, kLn2Lo = 7.440617110012397e-11;
  constexpr double kTerms[] = {1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9,  1.0 / 11,
                               1.0 / 13, 1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21};
  const int64_t bits = __double_as_longlong(x), k = (bits - 0x3FE6A09E667F3BCD) >> 52;
  const double m = __longlong_as_double(bits - int64_t(uint64_t(k) << 52));
  const double s = (m - 1.0) / (m + 1.0), z = s * s;
  double q = kTerms[9];
#pragma unroll
  for (int n = 8; n >= 0; --n) q = q * z + kTerms[n];
  const double tail = q * z * s, kf = double(k);
  return kf * kLn2Hi + (2.0 * s + (2.0 * tail + kf * kLn2Lo));
}

// E and g = -log(E) of a random word.
__device__ inline double exponential(uint32_t r) { return -log_positive(1.0 - (double(r) + 0.5) * 0x1p-32); }
__device__ inline double gumbel(uint32_t r) { return -log_positive(exponential(r)); }

// At least gumbel(r), without a logarithm: v >= 2^(bits - 33) for a word of so many bits, and -log(-log(1 -
// v)) <= -log(v). The constant is above log(2) by more than every rounding of gumbel.
__device__ inline double gumbel_bound(uint32_t r) {
  const int bits = 32 - __clz(int(r));
  return double(33 - bits - PYSPEC_PLANTED(3)) * 0.6931471806;
}

struct RandomWords {
  uint32_t w[4];
};

__device__ inline RandomWords philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, int64_t seed) {
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(uint64_t(seed) >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t low = 0xD2511F53u * c0, high = 0xCD9E8D57u * c2;
    const uint32_t low_carry = __umulhi(0xD2511F53u, c0), high_carry = __umulhi(0xCD9E8D57u, c2);
    c0 = high_carry ^ c1 ^ k0;
    c1 = high;
    c2 = low_carry ^ c3 ^ k1;
    c3 = low;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// What a number in [0, 1) is for.
enum class Purpose : uint32_t { kDraft = 1, kAccept = 2, kExtra = 3 };

__device__ inline double uniform(int64_t seed, int32_t stream, int32_t step, int64_t node, Purpose purpose,
                                 int64_t item = 0) {
  const RandomWords r =
      philox(uint32_t(item), uint32_t(step), uint32_t(stream), uint32_t(purpose) | uint32_t(node) << 8, seed);
  return double((uint64_t(r.w[0]) << 32 | r.w[1]) >> 11) * 0x1p-53;
}

// The random words of one request's tokens at one position.
class Noise {
 public:
  using Words = RandomWords;

  __device__ Noise(int64_t seed, int32_t stream, int64_t position)
      : seed_(seed), position_(uint32_t(position)), stream_(uint32_t(stream)) {
    if (PYSPEC_PLANTED(1)) {
      position_ = uint32_t(stream);
      stream_ = uint32_t(position);
    }
  }

  // Words of the tokens 4 group .. 4 group + 3.
  __device__ Words words(int64_t group) const {
    return philox(uint32_t(group), position_, stream_, 0, seed_);
  }

  __device__ uint32_t word(int64_t token) const {
    const Words words4 = words(token / 4);
    const int64_t k = token % 4;
    return k == 0 ? words4.w[0] : k == 1 ? words4.w[1] : k == 2 ? words4.w[2] : words4.w[3];
  }

 private:
  int64_t seed_;
  uint32_t position_, stream_;
};

}  // namespace pyspec::cuda
