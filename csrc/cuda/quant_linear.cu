// SPDX-License-Identifier: Apache-2.0
// CUDA quant_linear of GGUF rows, sm_80 and newer, with the activations of quantize_activations. A group of
// 32 k is one int8 MMA from zero, exact (quant_ring.cuh); groups are folded with FMAs in order, each output
// by one thread: the order of the specification, and the same bits as the CPU's kernel, whoever computed the
// dots.
//
// Many rows: a block is one warp, 32 channels and up to 64 rows, so that M <= 64 reads every weight once;
// sums stay in the registers where the MMA left the dots. Up to 8 rows: so few warps would wait for
// themselves, and order forbids to split K. Four warps take the 8 groups of a stage of 16 channels in turns,
// and pass dots and scales through shared memory to the 128 threads, of which each folds one output.
//
// Planted bugs, besides those of gguf.cuh and quant_ring.cuh: 4 minima dropped, 5 rows beyond M
// are read, 9 no barrier before dots are folded, 10 the last group of a stage is folded first.
#include "cuda/quant_ring.cuh"
#include "pyspec/quant_linear.h"

namespace pyspec {
namespace {

using cuda::GroupScale;
using cuda::kInfo;
using cuda::kScalesOfGroup;
using cuda::kStageGroups;
using cuda::kWarp;

constexpr int kMmaChannels = 16, kMmaRows = 8, kManyTiles = 2, kManyRowTiles = 8, kFewWarps = 4;
constexpr int kFewThreads = kFewWarps * kWarp;

// The activations' scale of group i of all rows, and its product with the sum of their integers.
template <QuantFormat kFormat>
__device__ inline float2 x_scale_of(const QuantRowsParams& p, int64_t i) {
  const float scale = __ldg(p.x_scale + i);
  if (!kInfo<kFormat>.has_min) return {scale, 0.0f};
  const int2 halves = __ldg(reinterpret_cast<const int2*>(p.x_sums) + i);
  return {scale, scale * float(halves.x + halves.y)};
}

// One group, and what it has of `dot, d` a half and `minimum`, in the order of the specification.
template <QuantFormat kFormat>
__device__ inline float folded(float sum, int dot, float d, float2 x) {
  return fmaf(float(dot), d * x.x, sum);
}
template <QuantFormat kFormat>
__device__ inline float folded_minimum(float sum, float minimum, float2 x) {
  return kInfo<kFormat>.has_min && !PYSPEC_PLANTED(4) ? fmaf(x.y, minimum, sum) : sum;
}

__device__ inline void store(const QuantRowsParams& p, int64_t m, int64_t n, float sum) {
  p.out[m * p.N + n] = p.bias ? sum + p.bias[n] : sum;
}

template <QuantFormat kFormat>
__global__ void __launch_bounds__(kWarp, 1) multiply_many_rows(const QuantRowsParams p) {
  constexpr int kChannels = kManyTiles * kMmaChannels, kRows = kManyRowTiles * kMmaRows;
  constexpr int kHalves = kScalesOfGroup<kFormat>;
  PYSPEC_DYNAMIC_SHARED(smem);
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  const int64_t n_tiles = (p.N + kChannels - 1) / kChannels;
  const int64_t n0 = blockIdx.x % n_tiles * kChannels, m0 = blockIdx.x / n_tiles * kRows;
  const int rows = int(min(p.M - m0, int64_t(kRows)));
  // Beyond M the last row again: its results are not stored.
  const auto row = [&](int i) { return m0 + (PYSPEC_PLANTED(5) ? i : min(i, rows - 1)); };
  const cuda::QuantRing<kFormat, kChannels, kWarp> ring(p, smem, n0);
  float sums[kManyTiles][kManyRowTiles][4] = {};
  for (int stage = 0; stage < ring.stages; ++stage) {
    ring.advance_to(stage);
    const int count = min(kStageGroups, ring.groups - stage * kStageGroups);
#pragma unroll 1
    for (int j = 0; j < count; ++j) {
      const int group = stage * kStageGroups + j;
      uint2 values[2 * kManyTiles];
      GroupScale scale[2 * kManyTiles][kHalves];
#pragma unroll
      for (int h = 0; h < 2 * kManyTiles; ++h) {
        const uint8_t* channel = ring.channel(stage, g + 8 * h);
        values[h] = cuda::group_values<kFormat>(channel, j, t);
#pragma unroll
        for (int half = 0; half < kHalves; ++half)
          scale[h][half] = cuda::group_scale<kFormat>(channel, j, half);
      }
#pragma unroll
      for (int r = 0; r < kManyRowTiles; ++r) {
        if (kMmaRows * r >= rows) break;
        const int8_t* x = p.x + row(kMmaRows * r + g) * p.K + group * 32 + 4 * t;
        float2 x_scale[2];
#pragma unroll
        for (int e = 0; e < 2; ++e)
          x_scale[e] = x_scale_of<kFormat>(p, row(kMmaRows * r + 2 * t + e) * ring.groups + group);
#pragma unroll
        for (int ct = 0; ct < kManyTiles; ++ct) {
          int dots[kHalves][4];
          cuda::group_dots<kFormat>(dots, values[2 * ct], values[2 * ct + 1], x);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            float& sum = sums[ct][r][e];
            const auto& s = scale[2 * ct + e / 2];
#pragma unroll
            for (int half = 0; half < kHalves; ++half)
              sum = folded<kFormat>(sum, dots[half][e], s[half].d, x_scale[e % 2]);
            sum = folded_minimum<kFormat>(sum, s[0].min, x_scale[e % 2]);
          }
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kManyRowTiles; ++r)
#pragma unroll
    for (int ct = 0; ct < kManyTiles; ++ct)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int m = r * kMmaRows + 2 * t + e % 2;
        const int64_t n = n0 + ct * kMmaChannels + g + e / 2 * 8;
        if (m < rows && n < p.N) store(p, m0 + m, n, sums[ct][r][e]);
      }
}

// What the warps pass to each other, of every group of a stage.
template <QuantFormat kFormat>
struct Exchange {
  static constexpr int kPitch = kMmaChannels + 4;  // so that neither writes nor reads conflict
  int dot[kStageGroups][kScalesOfGroup<kFormat>][kMmaRows][kPitch];
  float d[kStageGroups][kScalesOfGroup<kFormat>][kMmaChannels], minimum[kStageGroups][kMmaChannels];
};

template <QuantFormat kFormat>
__global__ void __launch_bounds__(kFewThreads) multiply_few_rows(const QuantRowsParams p) {
  constexpr int kHalves = kScalesOfGroup<kFormat>;
  using Ring = cuda::QuantRing<kFormat, kMmaChannels, kFewThreads>;
  PYSPEC_DYNAMIC_SHARED(smem);
  auto& exchange = *reinterpret_cast<Exchange<kFormat>*>(smem + Ring::kSharedBytes);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
  const int64_t n0 = int64_t(blockIdx.x) * kMmaChannels;
  const int rows = int(p.M);
  const auto row = [&](int i) { return int64_t(PYSPEC_PLANTED(5) ? i : min(i, rows - 1)); };
  // The output that this thread folds: rows 4 apart in a warp meet different banks.
  const int fold_c = lane % kMmaChannels, fold_m = warp + kFewWarps * (lane / kMmaChannels);
  const Ring ring(p, smem, n0);
  float sum = 0.0f;
  const auto fold_stage = [&](int stage, int count) {
    const int first = stage * kStageGroups;
    const int64_t fold_group = row(fold_m) * ring.groups + first;
    float2 x_scale[kStageGroups];  // early: they come from L2
#pragma unroll
    for (int j = 0; j < kStageGroups; ++j)
      if (j < count) x_scale[j] = x_scale_of<kFormat>(p, fold_group + j);
    const uint8_t *low = ring.channel(stage, g), *high = ring.channel(stage, g + 8);
    const int8_t* x = p.x + row(g) * p.K + first * 32 + 4 * t;
#pragma unroll
    for (int i = 0; i < kStageGroups / kFewWarps; ++i) {
      const int j = warp + i * kFewWarps;
      if (j >= count) break;
      int dots[kHalves][4];
      cuda::group_dots<kFormat>(dots, cuda::group_values<kFormat>(low, j, t),
                                cuda::group_values<kFormat>(high, j, t), x + j * 32);
#pragma unroll
      for (int half = 0; half < kHalves; ++half)
#pragma unroll
        for (int e = 0; e < 4; ++e) exchange.dot[j][half][2 * t + e % 2][g + e / 2 * 8] = dots[half][e];
      if (t < 2) {  // two lanes of a quad have a channel each
        const int c = g + 8 * t;
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
          const GroupScale scale = cuda::group_scale<kFormat>(t == 0 ? low : high, j, half);
          exchange.d[j][half][c] = scale.d;
          if (kInfo<kFormat>.has_min) exchange.minimum[j][c] = scale.min;
        }
      }
    }
    if (!PYSPEC_PLANTED(9)) __syncthreads();
#pragma unroll
    for (int i = 0; i < kStageGroups; ++i) {
      if (i >= count) break;
      const int j = PYSPEC_PLANTED(10) ? (i + count - 1) % count : i;
#pragma unroll
      for (int half = 0; half < kHalves; ++half)
        sum = folded<kFormat>(sum, exchange.dot[j][half][fold_m][fold_c], exchange.d[j][half][fold_c],
                              x_scale[j]);
      if (kInfo<kFormat>.has_min) sum = folded_minimum<kFormat>(sum, exchange.minimum[j][fold_c], x_scale[j]);
    }
  };
  for (int stage = 0; stage < ring.stages; ++stage) {
    ring.advance_to(stage);  // and the last stage's exchange has been read by all
    const int count = ring.groups - stage * kStageGroups;
    if (count >= kStageGroups) {
      fold_stage(stage, kStageGroups);  // a constant: no bounds are left in it
    } else {
      fold_stage(stage, count);
    }
  }
  if (fold_m < rows && n0 + fold_c < p.N) store(p, fold_m, n0 + fold_c, sum);
}

// Shared memory limits occupancy: 22 to 39 KB a warp of many rows, 17 to 30 KB four warps of few.
template <QuantFormat kFormat>
void run(const QuantRowsParams& p, void* stream) {
  if (p.M <= kMmaRows) {
    const int smem =
        cuda::QuantRing<kFormat, kMmaChannels, kFewThreads>::kSharedBytes + sizeof(Exchange<kFormat>);
    PYSPEC_LAUNCH(multiply_few_rows<kFormat>, unsigned((p.N + kMmaChannels - 1) / kMmaChannels), kFewThreads,
                  smem, stream, p);
  } else {
    constexpr int kChannels = kManyTiles * kMmaChannels, kRows = kManyRowTiles * kMmaRows;
    const unsigned blocks = unsigned((p.N + kChannels - 1) / kChannels * ((p.M + kRows - 1) / kRows));
    constexpr int kSmem = cuda::QuantRing<kFormat, kChannels, kWarp>::kSharedBytes;
    PYSPEC_LAUNCH(multiply_many_rows<kFormat>, blocks, kWarp, kSmem, stream, p);
  }
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
