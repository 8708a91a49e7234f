// SPDX-License-Identifier: Apache-2.0
// Launch choice of the CUDA linear family: linear, w4a16_linear, w8a8_linear, fp8_linear. Pure, for host and
// tests.
#pragma once

#include <cstdint>

namespace pyspec::cuda {

constexpr int kLinearWarps = 8, kLinearThreads = 32 * kLinearWarps;
constexpr int kMmaChannels = 16, kMmaRows = 8;  // of one tensor-core tile
constexpr int kMaxRowTiles = 8;                 // 64 rows of x that one read of the weights serves
constexpr int kStageBytes = 64, kGranule = 16;  // of a channel: two sectors, four cp.async
constexpr int64_t kFilledSms = 128;             // blocks that give all SMs of an H100 (132) one

struct LinearConfig {
  int channel_tiles;  // a block has 16, 32 or 64 channels
  int row_tiles;      // and 8 or up to 64 rows
  constexpr int channels() const { return kMmaChannels * channel_tiles; }
  constexpr int rows() const { return kMmaRows * row_tiles; }
};

// Stages that keep 40 to 64 KB in flight per block; shared memory limits occupancy: 48, 64 or 96 KB a block.
template <int kChannelTiles>
constexpr int kNumStages = kChannelTiles == 1 ? 6 : 5 - kChannelTiles / 2;

// The widest tile that still gives (nearly) every SM a block: a wide tile reads x less often, a narrow one
// fills the machine. Of many rows x is most of the traffic, and half of the SMs with twice the width need
// less time. No sum depends on it: K is dealt to the 8 warps of every block alike.
constexpr LinearConfig pick_config(int64_t M, int64_t N, int widest = 4) {
  const bool few = M <= kMmaRows;
  const int64_t least_blocks = few ? kFilledSms : kFilledSms / 2;
  int channel_tiles = few ? 1 : 2;
  while (channel_tiles < widest && N >= least_blocks * kMmaChannels * 2 * channel_tiles) channel_tiles *= 2;
  return {channel_tiles, few ? 1 : kMaxRowTiles};
}

}  // namespace pyspec::cuda
