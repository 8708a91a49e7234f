// SPDX-License-Identifier: Apache-2.0
// CUDA append_kv, sm_80 and newer. A block is one token: its rows (a KV head's key or value) are shared out
// to groups of `lanes` neighbouring threads, of which each takes whole units (pairs of runs, see rope.cuh):
// up to 256 elements of a row are in registers at a time, rotated in f32 there; the largest magnitude of a
// row that is quantised goes through shuffles. Bits of rotated keys are those of the CPU.
//
// Planted bugs: 1 values are rotated too; 2 the largest magnitude of half a row; 3 the scale of
// head 0; 4 a slot's page by the next larger page size; 5 rows beyond the last are written.
#include <algorithm>

#include "cuda/rope.cuh"
#include "cuda/row.cuh"
#include "pyspec/append_kv.h"

namespace pyspec {
namespace {

using cuda::kWarp;

constexpr int kMaxThreads = 256,
              kBlocksPerSm = 4;  // at most 64 registers: for more ptxas would spill

struct AppendConfig {
  int lanes;    // a power of two that share a row
  int threads;  // of a block, that is, of a token
};

constexpr AppendConfig pick_config(int64_t G, int units) {
  int lanes = 1;
  while (lanes < kWarp && lanes < units) lanes *= 2;
  const int64_t wanted = (2 * G * lanes + kWarp - 1) / kWarp * kWarp;
  return {lanes, int(std::min<int64_t>(wanted, kMaxThreads))};
}
static_assert(pick_config(8, 16).lanes == 16 && pick_config(8, 16).threads == 256);
static_assert(pick_config(3, 8).lanes == 8 && pick_config(3, 8).threads == 64);
static_assert(pick_config(1, 40).lanes == 32 && pick_config(1, 40).threads == 64);

// A key or a value of one token: where it comes from and goes to.
struct Row {
  const void* from;
  int64_t from_index;
  void* to;
  int64_t to_index;
  float* scale;
  int Y;  // rotated elements
  int units;
};

template <int kWidth>
__device__ Row row_of(const AppendKvParams& p, int64_t t, int r) {
  const bool value = r >= p.G;
  const int64_t g = value ? r - p.G : r;
  const uint64_t slot = p.slots[t], S = p.S + (PYSPEC_PLANTED(4) ? 1 : 0);
  // 64-bit division takes some 100 instructions: only a cache of more than 2^32 slots needs it
  const int64_t page = slot >> 32 ? slot / S : uint32_t(slot) / uint32_t(S), offset = slot - page * S;
  const KvPages& pages = value ? p.v_pages : p.k_pages;
  float* scales = value ? p.v_scale : p.k_scale;
  const int D = int(p.D), Y = value && !PYSPEC_PLANTED(1) ? 0 : int(p.Y);
  return {value ? p.v : p.k,
          t * (value ? p.v_stride_t : p.k_stride_t) + g * D,
          pages.data,
          page * pages.stride_p + offset * pages.stride_s + g * pages.stride_g,
          scales ? scales + int64_t(slot) * p.G + (PYSPEC_PLANTED(3) ? 0 : g) : nullptr,
          Y,
          cuda::row_units<kWidth>(D, Y)};
}

template <int kWidth>
__device__ void load_unit(const AppendKvParams& p, const Row& row, const cuda::RopeUnit& unit,
                          const float* angles, float (&x)[2 * kWidth]) {
  cuda::load_as<kWidth>(row.from, row.from_index + unit.a, p.dtype, x);
  if (unit.b < p.D) cuda::load_as<kWidth>(row.from, row.from_index + unit.b, p.dtype, x + kWidth);
  if (unit.pair < 0) return;
  float cosine[kWidth], sine[kWidth];
  cuda::load_as<kWidth>(angles, unit.pair, DType::kF32, cosine);
  cuda::load_as<kWidth>(angles, row.Y / 2 + unit.pair, DType::kF32, sine);
  cuda::rotate_unit<kWidth>(x, cosine, sine, p.interleaved);
}

template <int kWidth, bool kQuantised>
__device__ void store_run(const AppendKvParams& p, const Row& row, int at, const float* x, float scale) {
  if constexpr (kQuantised) {
    cuda::store_quantised<kWidth>(row.to, row.to_index + at, p.kv_dtype, x, scale);
  } else {
    cuda::store_as<kWidth>(row.to, row.to_index + at, p.kv_dtype, x);
  }
}

template <int kWidth, bool kQuantised>
__global__ void __launch_bounds__(kMaxThreads, kBlocksPerSm) append_rows(const AppendKvParams p, int lanes) {
  constexpr int kUnits = kWidth == 4 ? 1 : 4;  // of a thread at a time: 8 elements
  const int lane = threadIdx.x % lanes, rows = int(blockDim.x) / lanes, D = int(p.D);
  const int most_units = max(cuda::row_units<kWidth>(D, 0), cuda::row_units<kWidth>(D, int(p.Y)));
  const int chunk = kUnits * lanes;
  const int64_t t = blockIdx.x;
  const float* angles = p.rope_table ? p.rope_table + int64_t(p.positions[t]) * p.Y : nullptr;
  for (int first = 0; first < 2 * p.G; first += rows) {  // all threads together: they shuffle
    const int r = first + int(threadIdx.x) / lanes;
    const bool active = r < 2 * p.G || PYSPEC_PLANTED(5);
    const Row row = row_of<kWidth>(p, t, active ? r : 0);
    const int units = active ? row.units : 0;
    float x[kUnits][2 * kWidth] = {};
    const auto load = [&](int u0) {
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        const int u = u0 + i * lanes + lane;
        if (u < units)
          load_unit<kWidth>(p, row, cuda::rope_unit<kWidth>(u, D, row.Y, p.interleaved), angles, x[i]);
      }
    };
    float scale = 0.0f;
    if constexpr (kQuantised) {
      uint32_t most = 0;
      for (int u0 = 0; u0 < most_units; u0 += chunk) {
        load(u0);
#pragma unroll
        for (int i = 0; i < kUnits; ++i)
#pragma unroll
          for (int j = 0; j < 2 * kWidth; ++j)
            if (u0 + i * lanes + lane < units) most = max(most, cuda::magnitude_bits(x[i][j]));
      }
      for (int step = lanes / (PYSPEC_PLANTED(2) ? 4 : 2); step > 0; step /= 2)
        most = max(most, __shfl_xor_sync(0xffffffffu, most, step));
      scale = cuda::quantised_scale(most, p.kv_dtype == DType::kI8 ? 127.0f : 448.0f);
      if (active && lane == 0) *row.scale = scale;
    }
    for (int u0 = 0; u0 < units; u0 += chunk) {
      if (!kQuantised || most_units > chunk) load(u0);  // otherwise all of the row is still in registers
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        const int u = u0 + i * lanes + lane;
        if (u >= units) continue;
        const cuda::RopeUnit unit = cuda::rope_unit<kWidth>(u, D, row.Y, p.interleaved);
        store_run<kWidth, kQuantised>(p, row, unit.a, x[i], scale);
        if (unit.b < D) store_run<kWidth, kQuantised>(p, row, unit.b, x[i] + kWidth, scale);
      }
    }
  }
}

bool pages_by_fours(const KvPages& pages, int64_t size) {
  return cuda::by_fours(pages.data, size, pages.stride_p) &&
         cuda::by_fours(pages.data, size, pages.stride_s) && cuda::by_fours(pages.data, size, pages.stride_g);
}

}  // namespace

void append_kv_cuda(const AppendKvParams& p, void* stream) {
  if (p.T * p.G * p.D == 0) return;
  const int64_t size = size_of(p.dtype), kv_size = size_of(p.kv_dtype);
  const bool fours = cuda::rope_by_fours(p.D, p.Y, p.rope_table) && cuda::by_fours(p.k, size, p.k_stride_t) &&
                     cuda::by_fours(p.v, size, p.v_stride_t) && pages_by_fours(p.k_pages, kv_size) &&
                     pages_by_fours(p.v_pages, kv_size);
  const int D = int(p.D), Y = int(p.Y);
  const int units = fours ? std::max(cuda::row_units<4>(D, Y), cuda::row_units<4>(D, 0))
                          : std::max(cuda::row_units<1>(D, Y), cuda::row_units<1>(D, 0));
  const AppendConfig config = pick_config(p.G, units);
  const auto kernel = kv_size == 1 ? (fours ? append_rows<4, true> : append_rows<1, true>)
                                   : (fours ? append_rows<4, false> : append_rows<1, false>);
  PYSPEC_LAUNCH(kernel, unsigned(p.T), config.threads, 0, stream, p, config.lanes);
}

}  // namespace pyspec
