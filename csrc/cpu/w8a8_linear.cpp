// SPDX-License-Identifier: Apache-2.0
// CPU w8a8_linear: exact int32 dot products along K of row-major operands. One item is 16 channels for some
// rows.
#include "pyspec/w8a8_linear.h"

#include "cpu/kernel.h"

namespace pyspec::PYSPEC_ISA {
namespace {

constexpr int64_t kItemRows = 64;

// sums[c] = sum_k x[k] w[c * stride + k] for kCount channels; integer sums are exact in any order.
template <int kCount>
inline void dots(const int8_t* x, const int8_t* w, int64_t stride, int64_t K, int32_t* sums) {
#if defined(PYSPEC_ISA_AVX512)
  // The unsigned operand is w + 128; what that adds is 128 * sum(x), summed by the same instruction.
  const __m512i flip = _mm512_set1_epi8(char(0x80));
  __m512i acc[kCount], extra = _mm512_setzero_si512();
  for (int c = 0; c < kCount; ++c) acc[c] = _mm512_setzero_si512();
  for (int64_t k = 0; k < K; k += 64) {
    const __mmask64 mask = K - k >= 64 ? ~__mmask64(0) : (__mmask64(1) << (K - k)) - 1;
    const __m512i xs = _mm512_maskz_loadu_epi8(mask, x + k);
    extra = _mm512_dpbusd_epi32(extra, flip, xs);
#pragma GCC unroll 4
    for (int c = 0; c < kCount; ++c)
      acc[c] = _mm512_dpbusd_epi32(
          acc[c], _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, w + c * stride + k), flip), xs);
  }
  for (int c = 0; c < kCount; ++c) sums[c] = _mm512_reduce_add_epi32(_mm512_sub_epi32(acc[c], extra));
#elif defined(PYSPEC_ISA_AVX2)
  __m256i acc[kCount];
  for (int c = 0; c < kCount; ++c) acc[c] = _mm256_setzero_si256();
  const int64_t full = K / 16 * 16;
  for (int64_t k = 0; k < full; k += 16) {
    const __m256i xs = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + k)));
    for (int c = 0; c < kCount; ++c) {
      const __m256i ws =
          _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w + c * stride + k)));
      acc[c] = _mm256_add_epi32(acc[c], _mm256_madd_epi16(xs, ws));
    }
  }
  for (int c = 0; c < kCount; ++c) {
    sums[c] = reduce_add(I32{acc[c], _mm256_setzero_si256()});
    for (int64_t k = full; k < K; ++k) sums[c] += x[k] * w[c * stride + k];
  }
#else
  for (int c = 0; c < kCount; ++c) {
    sums[c] = 0;
    for (int64_t k = 0; k < K; ++k) sums[c] += x[k] * w[c * stride + k];
  }
#endif
}

void channels(const W8A8LinearParams& p, int64_t m, int64_t n, int count) {
  const int8_t* x = p.x + m * p.x_stride_m;
  int32_t sums[16] = {};
  for (int c = 0; c < count; c += 4) {
    const int8_t* w = p.weight + (n + c) * p.weight_stride_n;
    if (count - c >= 4) {
      dots<4>(x, w, p.weight_stride_n, p.K, sums + c);
    } else {
      for (int i = c; i < count; ++i, w += p.weight_stride_n) dots<1>(x, w, p.weight_stride_n, p.K, sums + i);
    }
  }
  const F32 y = to_f32(iload(sums)) * load_n(p.w_scale + n, count) * set1(p.x_scale[m]);
  if (p.out_dtype == DType::kF32) return store_n(static_cast<float*>(p.out) + m * p.N + n, y, count);
  uint16_t half[16];
  p.out_dtype == DType::kBF16 ? store_bf16(half, y) : store_f16(half, y);
  std::memcpy(static_cast<uint16_t*>(p.out) + m * p.N + n, half, size_t(count) * 2);
}

}  // namespace

void w8a8_linear(const W8A8LinearParams& p) {
  const int64_t blocks = (p.N + 15) / 16;
  parallel_for(blocks * ((p.M + kItemRows - 1) / kItemRows), [&](int64_t item) {
    const int64_t n = item % blocks * 16, first = item / blocks * kItemRows;
    for (int64_t m = first; m < std::min(p.M, first + kItemRows); ++m)
      channels(p, m, n, int(std::min<int64_t>(16, p.N - n)));
  });
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(w8a8_linear, W8A8LinearParams)
