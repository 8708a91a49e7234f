// SPDX-License-Identifier: Apache-2.0
// The tensor-core product of the linear family (linear, w4a16_linear, w8a8_linear, fp8_linear), sm_80 and
// newer.
//
// A block is 16, 32 or 64 channels and up to 64 rows, so that M <= 64 reads every weight once. K is dealt to
// its 8 warps in stages of 64 bytes a channel: stage s belongs to warp s % 8, which streams it through a ring
// of its own (cp.async, no barrier but __syncwarp) and adds its stages in ascending order; at the end the 8
// sums are added in warp order. That order depends on K alone: rows are independent, and tiles, M and N
// change no bits.
//
// Channels are the 16-wide side of the MMA and rows of x the 8-wide one: one row wastes 7/8 of it, not 15/16.
// As k is summed, any order of k serves if weights and x agree: of 32 k a thread takes the 8 consecutive ones
// from 8 t on (t: its place in the quad), one load of each, instead of the layout that ldmatrix would give.
//
// Planted bugs: 1 no wait for copies, 2 no __syncwarp after the wait, 3 no barrier before the
// merge, 4 the merge leaves out the last warp, 5 rows beyond M are read, 6 a slot is refilled while it is
// read.
#pragma once

#include <algorithm>

#include "cuda/linear_config.h"
#include "cuda/ptx.cuh"
#include "pyspec/dtype.h"

namespace pyspec::cuda {

template <class To, class From>
__device__ inline To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// A weight's rows as bytes. Rows that are not aligned to 16 bytes, or end between, are copied byte by byte.
struct WeightRows {
  const uint8_t* data;
  int64_t N, stride, bytes;  // bytes of a row that count; the rest of a stage is zero
  bool aligned;
  WeightRows(const void* weight, int64_t N, int64_t stride, int64_t bytes)
      : data(static_cast<const uint8_t*>(weight)), N(N), stride(stride), bytes(bytes) {
    aligned = (reinterpret_cast<uintptr_t>(data) | uintptr_t(stride) | uintptr_t(bytes)) % kGranule == 0;
  }
};

// Where granule q of a channel's 64 bytes lies: a permutation under which every fragment load below, of 4, 8
// or 16 bytes a thread, meets every bank once.
__device__ inline int swizzled(int channel, int q) {
  return q ^ ((channel >> 1 & 1) << 1 | (channel >> 2 & 1));
}

// A stage in shared memory, seen by the thread whose first channel is lane / 4; channels 8 further lie
// kChannelStep bytes further each, as the permutation repeats after 8.
constexpr int kChannelStep = 8 * kStageBytes;
struct Slot {
  const unsigned char* bytes;
  int first;  // byte of granule 0; the permutation is an exclusive or, so that it moves the others alike

  static __device__ int first_of(int lane) {
    return lane / 4 * kStageBytes + swizzled(lane / 4, 0) * kGranule;
  }
  __device__ const unsigned char* granule(int q) const { return bytes + (first ^ q * kGranule); }
};

// Rows of x as the B operand: 8 consecutive k of one row, as four words of two k. f32 becomes bf16 hi + lo
// (error 2^-17 of x) and costs two MMAs; an infinity has no lo part and makes its row NaN. A strided word has
// k and k + 4 (the order of nibbles), else k and k + 1.
struct F32Rows {
  using T = float;
  struct Raw {
    float4 low, high;
  };
  struct Words {
    uint32_t hi[4], lo[4];
  };
  static __device__ Raw load(const T* x) {
    const float4* p = reinterpret_cast<const float4*>(x);
    return {__ldg(p), __ldg(p + 1)};
  }
  static __device__ void split(float a, float b, uint32_t& hi, uint32_t& lo) {
    hi = bits_as<uint32_t>(__floats2bfloat162_rn(a, b));
    lo = bits_as<uint32_t>(
        __floats2bfloat162_rn(a - __uint_as_float(hi << 16), b - __uint_as_float(hi & 0xffff0000u)));
  }
  template <bool kStrided>
  static __device__ Words words(const Raw& r) {
    Words w;
    split(r.low.x, kStrided ? r.high.x : r.low.y, w.hi[0], w.lo[0]);
    split(kStrided ? r.low.y : r.low.z, kStrided ? r.high.y : r.low.w, w.hi[1], w.lo[1]);
    split(kStrided ? r.low.z : r.high.x, kStrided ? r.high.z : r.high.y, w.hi[2], w.lo[2]);
    split(kStrided ? r.low.w : r.high.z, r.high.w, w.hi[3], w.lo[3]);
    return w;
  }
};

struct BF16Rows {
  using T = uint16_t;
  using Raw = uint4;
  struct Words {
    uint32_t hi[4];
  };
  static __device__ Raw load(const T* x) { return __ldg(reinterpret_cast<const uint4*>(x)); }
  template <bool kStrided>
  static __device__ Words words(const Raw& r) {
    if constexpr (!kStrided) return {{r.x, r.y, r.z, r.w}};
    return {{__byte_perm(r.x, r.z, 0x5410), __byte_perm(r.x, r.z, 0x7632), __byte_perm(r.y, r.w, 0x5410),
             __byte_perm(r.y, r.w, 0x7632)}};
  }
};

// sum += 16 channels x 32 k times 32 k x 8 rows. The small parts first: they meet a sum that is still small.
template <class X>
__device__ inline void mma_32(float (&sum)[4], const uint32_t (&a)[2][4], const typename X::Words& x) {
  if constexpr (sizeof(x) > 16) {
    mma_bf16(sum, a[0], x.lo[0], x.lo[1]);
    mma_bf16(sum, a[1], x.lo[2], x.lo[3]);
  }
  mma_bf16(sum, a[0], x.hi[0], x.hi[1]);
  mma_bf16(sum, a[1], x.hi[2], x.hi[3]);
}

// One warp's copies of kChannels channels from n0 on: lane l copies granule l % 4 of channels l / 4, l / 4 +
// 8 ..
template <int kChannels>
struct StageLoader {
  const uint8_t* from;
  int64_t stride;
  int bytes, channels, to;  // left from the lane's granule and channel on; its place in a slot
  bool aligned;

  __device__ StageLoader(const WeightRows& w, int64_t n0) : stride(w.stride), aligned(w.aligned) {
    const int lane = threadIdx.x % 32, channel = lane / 4, q = lane % 4;
    from = w.data + (n0 + channel) * w.stride + q * kGranule;
    bytes = int(w.bytes) - q * kGranule;
    channels = int(min(w.N - n0, int64_t(kChannels))) - channel;
    to = channel * kStageBytes + swizzled(channel, q) * kGranule;
  }

  __device__ void load(int stage, unsigned char* slot) const {
    const int offset = stage * kStageBytes;
#pragma unroll
    for (int c = 0; c < kChannels; c += 8) {
      const uint8_t* source = from + c * stride + offset;
      unsigned char* target = slot + to + c * kStageBytes;
      if (aligned) {
        cp_async_16(target, source, c < channels && offset < bytes);
      } else {
        for (int b = 0; b < kGranule; ++b)
          target[b] = c < channels && offset + b < bytes ? source[b] : uint8_t(0);
      }
    }
  }
};

// Weight is a format with kStageK (k of a stage), Params, Sum (float or int), X (rows of x), kChannelTiles,
// kStrided, and, of one thread, prefetch<kAhead>(k): what chunk k .. k + 31 needs from global memory;
// fragments<kAhead>(slot, chunk, k): its A operand; multiply(words, sums, r): adds its product with row tile
// r; store(p, m, n, sum). x has rows of K rounded up to 32, zero behind K, aligned to 16 bytes.
template <class Weight, int kRowTiles>
__global__ void __launch_bounds__(kLinearThreads, kRowTiles == 1 && Weight::kChannelTiles < 4 ? 2 : 1)
    linear_tile(const typename Weight::Params p, const WeightRows rows) {
  using X = typename Weight::X;
  using Sum = typename Weight::Sum;
  constexpr int kChannelTiles = Weight::kChannelTiles, kChannels = kMmaChannels * kChannelTiles;
  constexpr int kStages = kNumStages<kChannelTiles>, kSlot = kChannels * kStageBytes;
  constexpr bool kAhead = kRowTiles == 1;  // else the products of a chunk hide it, and registers are few
  PYSPEC_DYNAMIC_SHARED(smem);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t n_tiles = (p.N + kChannels - 1) / kChannels;
  const int64_t n0 = blockIdx.x % n_tiles * kChannels, m0 = blockIdx.x / n_tiles * (kMmaRows * kRowTiles);
  const int K = int(p.K), rows_left = int(min(p.M - m0, int64_t(kMmaRows * kRowTiles)));
  unsigned char* ring = smem + warp * (kStages * kSlot);
  const auto slot_of = [&](int stage) { return ring + stage / kLinearWarps % kStages * kSlot; };
  const auto fill = [&](int stage) {
    if (stage * kStageBytes < rows.bytes) StageLoader<kChannels>(rows, n0).load(stage, slot_of(stage));
    cp_async_commit();
  };

  const int first = Slot::first_of(lane);

  // The thread's row of x, of row tile after row tile of chunk after chunk: one load ahead of the products.
  const typename X::T* x =
      static_cast<const typename X::T*>(p.x) + (m0 + lane / 4) * p.x_stride_m + lane % 4 * 8;
  const typename X::T* next_row = x;
  const auto load_x = [&](int k, int r) {
    next_row = r == 0 ? x + k : next_row + kMmaRows * p.x_stride_m;
    const bool valid = (kMmaRows * r + lane / 4 < rows_left || PYSPEC_PLANTED(5)) && k < K;
    return valid ? X::load(next_row) : typename X::Raw{};
  };

  Weight weight(p, int(n0) + lane / 4);
  Sum sums[kChannelTiles][kRowTiles][4] = {};
  for (int i = 0; i < kStages - 1; ++i) fill(warp + i * kLinearWarps);
  if (kAhead && warp * Weight::kStageK < K) weight.template prefetch<kAhead>(warp * Weight::kStageK);
  typename X::Raw next_x = load_x(warp * Weight::kStageK, 0);
  for (int stage = warp; stage * Weight::kStageK < K; stage += kLinearWarps) {
    if (!PYSPEC_PLANTED(1)) cp_async_wait<kStages - 2>();
    if (PYSPEC_PLANTED(6)) fill(stage + (kStages - 1) * kLinearWarps);
    if (!PYSPEC_PLANTED(2)) __syncwarp();  // the other lanes' copies are there; the last slot is read by all
    if (!PYSPEC_PLANTED(6)) fill(stage + (kStages - 1) * kLinearWarps);
    const Slot slot{slot_of(stage), first};
#pragma unroll 1
    for (int chunk = 0; chunk < Weight::kStageK / 32; ++chunk) {
      const int k = stage * Weight::kStageK + chunk * 32;
      if (k >= K) break;
      const bool last_chunk = chunk + 1 == Weight::kStageK / 32 || k + 32 >= K;
      const int next_k = last_chunk ? (stage + kLinearWarps) * Weight::kStageK : k + 32;
      if (!kAhead) weight.template prefetch<kAhead>(k);
      weight.template fragments<kAhead>(slot, chunk, k);
      if (kAhead && next_k < K) weight.template prefetch<kAhead>(next_k);
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        if (kMmaRows * r >= rows_left) break;
        const auto words = X::template words<Weight::kStrided>(next_x);
        const bool last = r + 1 == kRowTiles || kMmaRows * (r + 1) >= rows_left;
        next_x = load_x(last ? next_k : k, last ? 0 : r + 1);
        weight.multiply(words, sums, r);
      }
    }
  }

  // The warps' sums in warp order, one row tile at a time, where the rings were.
  constexpr int kPitch = kChannels + 4;  // rows 2 t of the four threads of a quad meet different banks
  Sum* merge = reinterpret_cast<Sum*>(smem);
  cp_async_wait<0>();
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
    if (kMmaRows * r >= rows_left) break;
    if (!PYSPEC_PLANTED(3)) __syncthreads();  // the rings, or the last row tile, are read by all
#pragma unroll
    for (int ct = 0; ct < kChannelTiles; ++ct)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = lane % 4 * 2 + e % 2, channel = ct * kMmaChannels + lane / 4 + e / 2 * 8;
        merge[(warp * kMmaRows + row) * kPitch + channel] = sums[ct][r][e];
      }
    __syncthreads();
    for (int o = threadIdx.x; o < kMmaRows * kChannels; o += kLinearThreads) {
      // With 16 channels a warp reads two rows: r and r + 4 lie in different banks, r and r + 1 do not.
      const int pair = o / (2 * kMmaChannels), channel = o % kChannels;
      const int row = kChannels == kMmaChannels ? pair + o / kMmaChannels % 2 * 4 : o / kChannels;
      const int64_t m = m0 + kMmaRows * r + row, n = n0 + channel;
      if (m >= p.M || n >= p.N) continue;
      Sum sum = 0;
      for (int w = 0; w < kLinearWarps - (PYSPEC_PLANTED(4) ? 1 : 0); ++w)
        sum += merge[(w * kMmaRows + row) * kPitch + channel];
      Weight::store(p, m, n, sum);
    }
  }
}

template <class Weight, int kRowTiles>
void launch_linear_tile(const typename Weight::Params& p, const WeightRows& rows, void* stream) {
  constexpr LinearConfig c{Weight::kChannelTiles, kRowTiles};
  constexpr int kSharedBytes = kLinearWarps * kNumStages<c.channel_tiles> * c.channels() * kStageBytes;
  const int64_t n_tiles = (p.N + c.channels() - 1) / c.channels();
  const int64_t m_tiles = (p.M + c.rows() - 1) / c.rows();
  PYSPEC_LAUNCH((linear_tile<Weight, kRowTiles>), unsigned(n_tiles * m_tiles), kLinearThreads, kSharedBytes,
                stream, p, rows);
}

// The kernel that pick_config names; Format<X, kChannelTiles> is a Weight.
template <template <class, int> class Format, class X, int kWidest = 4>
void run_linear_tile(const typename Format<X, 1>::Params& p, const WeightRows& rows, void* stream) {
  if (p.M == 0 || p.N == 0) return;
  const LinearConfig c = pick_config(p.M, p.N, kWidest);
  if (c.row_tiles == 1) {
    if (c.channel_tiles == 1) return launch_linear_tile<Format<X, 1>, 1>(p, rows, stream);
    if (c.channel_tiles == 2) return launch_linear_tile<Format<X, 2>, 1>(p, rows, stream);
    if constexpr (kWidest == 4) return launch_linear_tile<Format<X, 4>, 1>(p, rows, stream);
  }
  if (c.channel_tiles == 2) return launch_linear_tile<Format<X, 2>, kMaxRowTiles>(p, rows, stream);
  if constexpr (kWidest == 4) return launch_linear_tile<Format<X, 4>, kMaxRowTiles>(p, rows, stream);
}

}  // namespace pyspec::cuda
