// SPDX-License-Identifier: Apache-2.0
// quant_linear's way from GGUF rows to exact dot products of groups: a ring of stages of 256 k (one K-quant
// block, or eight of the others: 144 to 272 bytes a channel) in shared memory, and an int8 MMA per group
// of 32.
//
// Stages are copied by 16 bytes from the aligned address before, since rows and blocks are aligned to 2 bytes
// only. The pitch of a channel is an odd number of 16 bytes: the 8 channels of a load meet different banks.
//
// Planted bugs: 1 no wait for copies, 2 no barrier after the wait, 3 a slot is refilled while it
// is read, 6 scales of K-quants unrounded, 7 a stage reads beyond the weight's end, 8 the halves of q6_k
// share a scale.
#pragma once

#include "cuda/gguf.cuh"
#include "pyspec/quant_linear.h"

namespace pyspec::cuda {

constexpr int kStageK = 256, kStageGroups = kStageK / 32, kGranule = 16;

template <QuantFormat kFormat>
constexpr QuantFormatInfo kInfo = info(kFormat);
template <QuantFormat kFormat>
constexpr int kScalesOfGroup = kInfo<kFormat>.half_groups ? 2 : 1;

// The stages of kChannels channels from n0 on, copied by all kThreads threads of a block.
template <QuantFormat kFormat, int kChannels, int kThreads>
struct QuantRing {
  static constexpr int kBytes =
      kStageK / kInfo<kFormat>.block_k * kInfo<kFormat>.block_bytes;         // of a channel
  static constexpr int kGranules = (kBytes + 14 + kGranule - 1) / kGranule;  // they begin up to 14 bytes in
  static constexpr int kPlaces = kGranules | 1, kPitch = kPlaces * kGranule;
  static constexpr int kStages = 4, kSharedBytes = kStages * kChannels * kPitch;

  const QuantRowsParams& p;
  uint8_t* const slots;
  const int64_t n0, row_bytes;
  const int groups, stages;

  __device__ QuantRing(const QuantRowsParams& p, uint8_t* slots, int64_t n0)
      : p(p),
        slots(slots),
        n0(n0),
        row_bytes(p.K / kInfo<kFormat>.block_k * kInfo<kFormat>.block_bytes),
        groups(int(p.K / 32)),
        stages((groups + kStageGroups - 1) / kStageGroups) {
    for (int i = 0; i < kStages - 1; ++i) fill(i);
  }

  __device__ uint8_t* slot(int stage) const { return slots + stage % kStages * (kChannels * kPitch); }

  __device__ void fill(int stage) const {
    if (stage < stages) {
      const uint8_t* end = p.weight + p.N * row_bytes;
      const int64_t first = int64_t(stage) * kBytes, bytes = min(int64_t(kBytes), row_bytes - first);
      for (int i = threadIdx.x; i < kChannels * kPlaces; i += kThreads) {
        const int c = i / kPlaces, q = i % kPlaces;
        if (n0 + c >= p.N) break;
        const uint8_t* from = p.weight + (n0 + c) * row_bytes + first;
        const uint8_t* granule = from - reinterpret_cast<uintptr_t>(from) % kGranule + q * kGranule;
        uint8_t* to = slot(stage) + c * kPitch + q * kGranule;
        if (granule >= from + bytes) continue;
        if (granule >= p.weight && (granule + kGranule <= end || PYSPEC_PLANTED(7))) {
          cp_async_16(to, granule);
        } else {  // the first or last bytes of a weight that is not aligned to 16
          for (int b = 0; b < kGranule; ++b)
            if (granule + b >= p.weight && granule + b < end) to[b] = granule[b];
        }
      }
    }
    cp_async_commit();
  }

  // Waits for a stage, and has a later one copied to where the one before was.
  __device__ void advance_to(int stage) const {
    if (!PYSPEC_PLANTED(1)) cp_async_wait<kStages - 2>();
    if (PYSPEC_PLANTED(3)) fill(stage + kStages - 1);
    if (!PYSPEC_PLANTED(2)) {
      if (kThreads == 32) {
        __syncwarp();
      } else {
        __syncthreads();
      }
    }
    if (!PYSPEC_PLANTED(3)) fill(stage + kStages - 1);
  }

  // Where a channel's bytes of a stage begin; channels beyond N are the last one.
  __device__ const uint8_t* channel(int stage, int c) const {
    c = min(c, int(min(p.N - n0, int64_t(kChannels))) - 1);
    const uint8_t* from = p.weight + (n0 + c) * row_bytes + int64_t(stage) * kBytes;
    return slot(stage) + c * kPitch + reinterpret_cast<uintptr_t>(from) % kGranule;
  }
};

// The block of group j of a stage's 8, and the group's index in it.
template <QuantFormat kFormat>
__device__ inline const uint8_t* block_of(const uint8_t* channel, int& j) {
  if constexpr (kInfo<kFormat>.block_k == kStageK) return channel;
  const uint8_t* block = channel + j * kInfo<kFormat>.block_bytes;
  j = 0;
  return block;
}

// The scale of group j of a stage, or of one of its halves, as the op rounds it.
template <QuantFormat kFormat>
__device__ inline GroupScale group_scale(const uint8_t* channel, int j, int half) {
  const uint8_t* block = block_of<kFormat>(channel, j);
  const GroupScale s =
      exact_scale<kFormat>(block, j * kScalesOfGroup<kFormat> + (PYSPEC_PLANTED(8) ? 0 : half));
  if (kInfo<kFormat>.block_k != kStageK || PYSPEC_PLANTED(6)) return s;
  return {rounded_11(s.d), rounded_11(s.min)};
}

// Values of group j of a stage for the thread with place t in its quad: k = 4 t .. 4 t + 3 and 16 further,
// which is where the MMA has them.
template <QuantFormat kFormat>
__device__ inline uint2 group_values(const uint8_t* channel, int j, int t) {
  const uint8_t* block = block_of<kFormat>(channel, j);
  return {read_values<kFormat>(block, 32 * j + 4 * t), read_values<kFormat>(block, 32 * j + 16 + 4 * t)};
}

// Products of 16 channels and 8 rows over a group, exact; q6_k: over each half of it, the other half's
// weights zero.
template <QuantFormat kFormat>
__device__ inline void group_dots(int (&dots)[kScalesOfGroup<kFormat>][4], uint2 low_channel,
                                  uint2 high_channel, const int8_t* x) {
  const uint32_t b0 = __ldg(reinterpret_cast<const uint32_t*>(x));
  const uint32_t b1 = __ldg(reinterpret_cast<const uint32_t*>(x + 16));
#pragma unroll
  for (int half = 0; half < kScalesOfGroup<kFormat>; ++half) {
    const bool first = kScalesOfGroup<kFormat> == 1 || half == 0,
               second = kScalesOfGroup<kFormat> == 1 || half == 1;
    const uint32_t a[4] = {first ? low_channel.x : 0, first ? high_channel.x : 0, second ? low_channel.y : 0,
                           second ? high_channel.y : 0};
#pragma unroll
    for (int e = 0; e < 4; ++e) dots[half][e] = 0;
    mma_s8(dots[half], a, b0, b1);
  }
}

}  // namespace pyspec::cuda
