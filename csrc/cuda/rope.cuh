// SPDX-License-Identifier: Apache-2.0
// Rows of D elements whose first Y are rotated, as rope and append_kv see them: cut into units of two runs of
// kWidth elements, each run with the one that RoPE pairs it with. A thread takes whole units.
#pragma once

#include "cuda/elements.cuh"

namespace pyspec::cuda {

struct RopeUnit {
  int a, b;  // the runs [a, a + kWidth) and [b, b + kWidth); b >= D: there is no second run
  int pair;  // its first pair: kWidth cosines and sines from there on; -1: copied
};

template <int kWidth>
__host__ __device__ constexpr int copied_units(int D, int Y) {
  return (D - Y + 2 * kWidth - 1) / (2 * kWidth);
}
template <int kWidth>
__host__ __device__ constexpr int row_units(int D, int Y) {
  return Y / 2 / kWidth + copied_units<kWidth>(D, Y);
}
static_assert(row_units<4>(128, 128) == 16 && row_units<4>(128, 64) == 16 && row_units<1>(10, 6) == 5);

template <int kWidth>
__device__ inline RopeUnit rope_unit(int u, int D, int Y, bool interleaved) {
  const int half = Y / 2, pair = u * kWidth;
  if (pair < half)
    return interleaved ? RopeUnit{2 * pair, 2 * pair + kWidth, pair} : RopeUnit{pair, half + pair, pair};
  const int a = Y + pair - half;
  return {a, a + copied_units<kWidth>(D, Y) * kWidth, -1};
}

// The rounding of the CPU's kernels: the first product is exact, inside the FMA.
__device__ inline void rotate_pair(float& a, float& b, float cosine, float sine) {
  const float turned = fmaf(a, cosine, -(b * sine));
  b = fmaf(b, cosine, a * sine);
  a = turned;
}

// Both runs of a rotated unit: a in x[0, kWidth), b behind it.
template <int kWidth>
__device__ inline void rotate_unit(float (&x)[2 * kWidth], const float (&cosine)[kWidth],
                                   const float (&sine)[kWidth], bool interleaved) {
  if (interleaved) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) rotate_pair(x[2 * i], x[2 * i + 1], cosine[i], sine[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) rotate_pair(x[i], x[kWidth + i], cosine[i], sine[i]);
  }
}

// Whether units of four fit rows of D elements with this table.
inline bool rope_by_fours(int64_t D, int64_t Y, const float* rope_table) {
  return D % 4 == 0 && Y % 8 == 0 && by_fours(rope_table, sizeof(float), Y);
}

}  // namespace pyspec::cuda
