// SPDX-License-Identifier: Apache-2.0
// CUDA rope, sm_80 and newer. A block has some heads of one token; a thread has one unit (pairs of runs, see
// rope.cuh) of every head it comes to, and so reads its cosines and sines once. Bits are those of the CPU.
//
// Planted bugs: 1 pairs in the other order; 2 one head more than a block's; 3 elements that are
// not rotated are not copied; 4 the token's index for its position.
#include <algorithm>

#include "cuda/rope.cuh"
#include "cuda/row.cuh"
#include "pyspec/rope.h"

namespace pyspec {
namespace {

constexpr int kThreads = 128, kBlocksPerSm = 8;  // at most 64 registers: for 16 blocks ptxas would spill

struct RopeConfig {
  int units, lanes, rows;  // of a row; threads that share a row; rows at once
  int heads;               // of a block
};

// Four heads a thread amortise its cosines and sines; with few tokens, more blocks are worth more.
constexpr RopeConfig pick_config(int64_t T, int64_t H, int units) {
  const int lanes = std::max(1, std::min(units, kThreads)), rows = kThreads / lanes;
  return {units, lanes, rows, int(std::min<int64_t>(H, T < 32 ? rows : 4 * rows))};
}
static_assert(pick_config(1, 32, 16).heads == 8 && pick_config(64, 32, 16).heads == 32);
static_assert(pick_config(64, 9, 40).rows == 3 && pick_config(1, 9, 200).rows == 1);

template <int kWidth>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    rotate_heads(const RopeParams p, RopeConfig config) {
  const int lane = threadIdx.x % config.lanes, row = threadIdx.x / config.lanes;
  if (row >= config.rows) return;
  const int D = int(p.D), Y = int(p.Y);
  const int64_t first = int64_t(blockIdx.y) * config.heads;
  const int64_t end = min(first + config.heads, p.H) + (PYSPEC_PLANTED(2) ? 1 : 0);
  const int64_t t = blockIdx.x;
  const float* angles = p.rope_table + (PYSPEC_PLANTED(4) ? t : int64_t(p.positions[t])) * Y;
  for (int u = lane; u < config.units; u += config.lanes) {
    const cuda::RopeUnit unit = cuda::rope_unit<kWidth>(u, D, Y, p.interleaved);
    float cosine[kWidth] = {}, sine[kWidth] = {};
    if (unit.pair >= 0) {
      cuda::load_as<kWidth>(angles, unit.pair, DType::kF32, cosine);
      cuda::load_as<kWidth>(angles, Y / 2 + unit.pair, DType::kF32, sine);
    } else if (PYSPEC_PLANTED(3)) {
      continue;
    }
    for (int64_t h = first + row; h < end; h += config.rows) {
      const int64_t from = t * p.x_stride_t + h * D, to = t * p.out_stride_t + h * D;
      float x[2 * kWidth] = {};
      cuda::load_as<kWidth>(p.x, from + unit.a, p.dtype, x);
      if (unit.b < D) cuda::load_as<kWidth>(p.x, from + unit.b, p.dtype, x + kWidth);
      if (unit.pair >= 0) cuda::rotate_unit<kWidth>(x, cosine, sine, p.interleaved != PYSPEC_PLANTED(1));
      cuda::store_as<kWidth>(p.out, to + unit.a, p.dtype, x);
      if (unit.b < D) cuda::store_as<kWidth>(p.out, to + unit.b, p.dtype, x + kWidth);
    }
  }
}

}  // namespace

void rope_cuda(const RopeParams& p, void* stream) {
  if (p.T * p.H * p.D == 0) return;
  const int64_t size = size_of(p.dtype);
  const bool fours = cuda::rope_by_fours(p.D, p.Y, p.rope_table) && cuda::by_fours(p.x, size, p.x_stride_t) &&
                     cuda::by_fours(p.out, size, p.out_stride_t);
  const int units = fours ? cuda::row_units<4>(int(p.D), int(p.Y)) : cuda::row_units<1>(int(p.D), int(p.Y));
  const RopeConfig config = pick_config(p.T, p.H, units);
  const auto kernel = fours ? rotate_heads<4> : rotate_heads<1>;
  PYSPEC_LAUNCH(kernel, cuda::grid_of(p.T, p.H, config.heads), kThreads, 0, stream, p, config);
}

}  // namespace pyspec
