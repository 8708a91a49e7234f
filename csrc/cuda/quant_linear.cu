// SPDX-License-Identifier: Apache-2.0
// CUDA quant_linear of GGUF rows, sm_80 and newer, with the activations of quantize_activations. A group of
// 32 k is one int8 MMA from zero, exact; groups are folded with FMAs in order, each output by one thread: the
// order of the specification, and the same bits as the CPU's kernel.
//
// A block is one warp, 16 or 32 channels and up to 64 rows, so that M <= 64 reads every weight once. 256 k of
// a channel at a time (one K-quant block, or eight of the others: 144 to 272 bytes) come through a ring in
// shared memory: copies of 16 bytes from the aligned address before, since rows and blocks are aligned to 2
// bytes only. The pitch of a channel is an odd number of 16 bytes, so that the 8 channels of a load meet
// different banks.
//
// Planted bugs (PYSPEC_BUG), besides those of gguf.cuh: 1 no wait for copies, 2 no __syncwarp after the wait,
// 3 a slot is refilled while it is read, 4 minima dropped, 5 rows beyond M are read, 6 scales of K-quants
// unrounded, 7 a stage reads beyond the weight's end, 8 the halves of q6_k share a scale.
#include <algorithm>

#include "cuda/gguf.cuh"
#include "pyspec/quant_linear.h"

namespace pyspec {
namespace {

constexpr int kWarp = 32, kMmaChannels = 16, kMmaRows = 8, kStageK = 256, kGroups = kStageK / 32,
              kGranule = 16;

template <QuantFormat kFormat>
constexpr QuantFormatInfo kInfo = info(kFormat);

// Sizes of a format in the ring.
template <QuantFormat kFormat>
struct Ring {
  static constexpr int kBytes = kStageK / kInfo<kFormat>.block_k * kInfo<kFormat>.block_bytes;  // of a stage
  static constexpr int kGranules =
      (kBytes + kGranule - 2 + kGranule - 1) / kGranule;  // begins up to 14 bytes in
  static constexpr int kPitch = (kGranules | 1) * kGranule;
  static constexpr int kStages = 4;
};

// One warp's copies of one stage of kChannels channels from n0 on.
template <QuantFormat kFormat, int kChannels>
__device__ inline void load_stage(const QuantRowsParams& p, int64_t row_bytes, int64_t n0, int64_t stage,
                                  uint8_t* slot) {
  using R = Ring<kFormat>;
  const uint8_t* end = p.weight + p.N * row_bytes;
  const int64_t first = stage * R::kBytes, bytes = min(int64_t(R::kBytes), row_bytes - first);
  for (int i = threadIdx.x; i < kChannels * R::kGranules; i += kWarp) {
    const int c = i / R::kGranules, q = i % R::kGranules;
    if (n0 + c >= p.N) break;
    const uint8_t* from = p.weight + (n0 + c) * row_bytes + first;
    const uint8_t* granule = from - reinterpret_cast<uintptr_t>(from) % kGranule + q * kGranule;
    uint8_t* to = slot + c * R::kPitch + q * kGranule;
    if (granule >= from + bytes) continue;
    if (granule >= p.weight && (granule + kGranule <= end || PYSPEC_PLANTED(7))) {
      cuda::cp_async_16(to, granule);
    } else {  // the first or last bytes of a weight that is not aligned to 16
      for (int b = 0; b < kGranule; ++b)
        if (granule + b >= p.weight && granule + b < end) to[b] = granule[b];
    }
  }
}

template <QuantFormat kFormat, int kChannelTiles, int kRowTiles>
__global__ void __launch_bounds__(kWarp) multiply(const QuantRowsParams p) {
  using R = Ring<kFormat>;
  constexpr int kChannels = kMmaChannels * kChannelTiles, kRows = kMmaRows * kRowTiles;
  constexpr bool kKQuant = kInfo<kFormat>.block_k == kStageK;
  PYSPEC_DYNAMIC_SHARED(smem);
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  const int64_t n_tiles = (p.N + kChannels - 1) / kChannels;
  const int64_t n0 = blockIdx.x % n_tiles * kChannels, m0 = blockIdx.x / n_tiles * kRows;
  const int rows = int(min(p.M - m0, int64_t(kRows))), groups = int(p.K / 32);
  const int stages = (groups + kGroups - 1) / kGroups;
  const int64_t row_bytes = p.K / kInfo<kFormat>.block_k * kInfo<kFormat>.block_bytes;
  const auto slot_of = [&](int stage) { return smem + stage % R::kStages * (kChannels * R::kPitch); };
  const auto fill = [&](int stage) {
    if (stage < stages) load_stage<kFormat, kChannels>(p, row_bytes, n0, stage, slot_of(stage));
    cuda::cp_async_commit();
  };
  // Row `g` of a row tile for the products, rows 2 t and 2 t + 1 for the folds; beyond M the last row again.
  const auto row = [&](int r, int i) { return PYSPEC_PLANTED(5) ? r * 8 + i : min(r * 8 + i, rows - 1); };

  float sums[kChannelTiles][kRowTiles][4] = {};
  for (int i = 0; i < R::kStages - 1; ++i) fill(i);
  for (int stage = 0; stage < stages; ++stage) {
    if (!PYSPEC_PLANTED(1)) cuda::cp_async_wait<R::kStages - 2>();
    if (PYSPEC_PLANTED(3)) fill(stage + R::kStages - 1);
    if (!PYSPEC_PLANTED(2)) __syncwarp();  // the other lanes' copies are there; the last slot is read by all
    if (!PYSPEC_PLANTED(3)) fill(stage + R::kStages - 1);
    const uint8_t* channel[2 * kChannelTiles];  // of the thread, 8 apart: where its bytes begin in the slot
#pragma unroll
    for (int h = 0; h < 2 * kChannelTiles; ++h) {
      const int c = min(g + 8 * h, int(min(p.N - n0, int64_t(kChannels))) - 1);
      const uint8_t* from = p.weight + (n0 + c) * row_bytes + int64_t(stage) * R::kBytes;
      channel[h] = slot_of(stage) + c * R::kPitch + reinterpret_cast<uintptr_t>(from) % kGranule;
    }
#pragma unroll(kRowTiles == 1 ? 4 : 1)
    for (int j = 0; j < kGroups; ++j) {
      const int64_t group = int64_t(stage) * kGroups + j;
      if (group >= groups) break;
      uint32_t a[kChannelTiles][4];
      cuda::GroupScale scale[2 * kChannelTiles], upper[2 * kChannelTiles];
#pragma unroll
      for (int h = 0; h < 2 * kChannelTiles; ++h) {
        const uint8_t* block = channel[h] + (kKQuant ? 0 : j * kInfo<kFormat>.block_bytes);
        const int k = kKQuant ? 32 * j : 0;
        a[h / 2][h % 2] = cuda::read_values<kFormat>(block, k + 4 * t);
        a[h / 2][h % 2 + 2] = cuda::read_values<kFormat>(block, k + 16 + 4 * t);
        scale[h] = cuda::exact_scale<kFormat>(block, kInfo<kFormat>.half_groups ? 2 * j : kKQuant ? j : 0);
        if (kInfo<kFormat>.half_groups)
          upper[h] = cuda::exact_scale<kFormat>(block, 2 * j + (PYSPEC_PLANTED(8) ? 0 : 1));
        if (kKQuant && !PYSPEC_PLANTED(6)) {
          scale[h] = {cuda::rounded_11(scale[h].d), cuda::rounded_11(scale[h].min)};
          if (kInfo<kFormat>.half_groups) upper[h].d = cuda::rounded_11(upper[h].d);
        }
      }
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        if (kMmaRows * r >= rows) break;
        const int8_t* x = p.x + (m0 + row(r, g)) * p.K + group * 32 + 4 * t;
        const uint32_t b0 = __ldg(reinterpret_cast<const uint32_t*>(x));
        const uint32_t b1 = __ldg(reinterpret_cast<const uint32_t*>(x + 16));
        float x_scale[2], x_sum[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int64_t i = (m0 + row(r, 2 * t + e)) * groups + group;
          x_scale[e] = __ldg(p.x_scale + i);
          if (kInfo<kFormat>.has_min)
            x_sum[e] = x_scale[e] * float(__ldg(p.x_sums + 2 * i) + __ldg(p.x_sums + 2 * i + 1));
        }
#pragma unroll
        for (int ct = 0; ct < kChannelTiles; ++ct) {
          int dot[4] = {}, dot_upper[4] = {};
          if constexpr (kInfo<kFormat>.half_groups) {
            const uint32_t low[4] = {a[ct][0], a[ct][1], 0, 0}, high[4] = {0, 0, a[ct][2], a[ct][3]};
            cuda::mma_s8(dot, low, b0, b1);
            cuda::mma_s8(dot_upper, high, b0, b1);
          } else {
            cuda::mma_s8(dot, a[ct], b0, b1);
          }
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int h = 2 * ct + e / 2;
            float& sum = sums[ct][r][e];
            sum = fmaf(float(dot[e]), scale[h].d * x_scale[e % 2], sum);
            if (kInfo<kFormat>.half_groups) sum = fmaf(float(dot_upper[e]), upper[h].d * x_scale[e % 2], sum);
            if (kInfo<kFormat>.has_min && !PYSPEC_PLANTED(4)) sum = fmaf(x_sum[e % 2], scale[h].min, sum);
          }
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int ct = 0; ct < kChannelTiles; ++ct)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int m = r * kMmaRows + 2 * t + e % 2;
        const int64_t n = n0 + ct * kMmaChannels + g + e / 2 * 8;
        if (m < rows && n < p.N)
          p.out[(m0 + m) * p.N + n] = p.bias ? sums[ct][r][e] + p.bias[n] : sums[ct][r][e];
      }
}

// One row tile: 16 channels, as many warps as can be. More: 32, so that x is read half as often.
template <QuantFormat kFormat>
void run(const QuantRowsParams& p, void* stream) {
  const int channel_tiles = p.M <= kMmaRows ? 1 : 2, channels = channel_tiles * kMmaChannels;
  const int rows = p.M <= kMmaRows ? kMmaRows : 8 * kMmaRows;
  const int smem =
      Ring<kFormat>::kStages * channels * Ring<kFormat>::kPitch;  // 11 to 39 KB: limits occupancy
  const unsigned blocks = unsigned((p.N + channels - 1) / channels * ((p.M + rows - 1) / rows));
  const auto kernel = channel_tiles == 1 ? multiply<kFormat, 1, 1> : multiply<kFormat, 2, 8>;
  PYSPEC_LAUNCH(kernel, blocks, kWarp, smem, stream, p);
}

}  // namespace

void quant_linear_cuda(const QuantRowsParams& p, void* stream) {
  if (p.M == 0 || p.N == 0) return;
  switch (p.format) {
    case QuantFormat::kQ4_0:
      return run<QuantFormat::kQ4_0>(p, stream);
    case QuantFormat::kQ4_1:
      return run<QuantFormat::kQ4_1>(p, stream);
    case QuantFormat::kQ5_0:
      return run<QuantFormat::kQ5_0>(p, stream);
    case QuantFormat::kQ8_0:
      return run<QuantFormat::kQ8_0>(p, stream);
    case QuantFormat::kQ4_K:
      return run<QuantFormat::kQ4_K>(p, stream);
    case QuantFormat::kQ6_K:
      return run<QuantFormat::kQ6_K>(p, stream);
  }
}

}  // namespace pyspec
