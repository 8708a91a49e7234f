// SPDX-License-Identifier: Apache-2.0
// Rows of f32 or bf16 weights to a packed block (pyspec/linear.h). Included inside pyspec::PYSPEC_ISA.
#pragma once

namespace pyspec::PYSPEC_ISA {

template <typename Element>
inline void pack_elements(const Element* weight, int64_t stride_n, int64_t N, int64_t K, int64_t n,
                          Element* block) {
  constexpr bool kPairs = sizeof(Element) == 2;  // [K/2][16][2], else [K][16]
  std::memset(block, 0, size_t(packed_block_elements(K)) * sizeof(Element));
  for (int64_t c = 0; c < std::min<int64_t>(16, N - n); ++c) {
    const Element* row = weight + (n + c) * stride_n;
    for (int64_t k = 0; k < K; ++k) block[kPairs ? k / 2 * 32 + c * 2 + k % 2 : k * 16 + c] = row[k];
  }
}

// Channels [n, n + 16) of N; channels beyond N and the odd k beyond K are zero.
inline void pack_rows(const void* weight, int64_t stride_n, DType dtype, int64_t N, int64_t K, int64_t n,
                      void* block) {
  if (dtype == DType::kF32) {
    pack_elements(static_cast<const float*>(weight), stride_n, N, K, n, static_cast<float*>(block));
  } else {
    pack_elements(static_cast<const uint16_t*>(weight), stride_n, N, K, n, static_cast<uint16_t*>(block));
  }
}

}  // namespace pyspec::PYSPEC_ISA
