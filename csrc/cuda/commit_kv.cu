// SPDX-License-Identifier: Apache-2.0
// CUDA commit_kv, sm_80 and newer. A thread moves one column (up to 16 bytes of one KV head's key or value,
// or its scale) along the whole path of one request, kMoves nodes at a time: it loads them all, then stores
// them, so that their latencies overlap. That is safe in place: paths increase strictly, so the target of
// move j, node j, is no source of a later move, whose nodes are greater; and no other thread touches the
// column.
//
// Planted bugs: 1 moves from the last to the first; 2 scales stay; 3 one move too many; 4 one
// page for the whole request; 5 the last column stays.
#include <algorithm>

#include "cuda/row.cuh"
#include "pyspec/commit_kv.h"

namespace pyspec {
namespace {

constexpr int kThreads = 128, kMoves = 4;

// K or V, or the scales of either, as columns of `width` bytes; strides in bytes.
struct Columns {
  unsigned char* data;
  int64_t stride_p, stride_s, stride_g;
  int per_head;  // columns of a KV head
};

template <typename T>
__device__ void move_column(const CommitKvParams& p, const Columns& columns, int column, int64_t b) {
  unsigned char* data = columns.data + column / columns.per_head * columns.stride_g +
                        column % columns.per_head * int64_t(sizeof(T));
  const int32_t* table = p.page_table + b * p.W;
  const int32_t* path = p.path + b * p.E;
  const int L = p.kv_len[b], S = int(p.S), count = p.path_len[b] + (PYSPEC_PLANTED(3) ? 1 : 0);
  const auto slot = [&](int logical) {
    const int page = (PYSPEC_PLANTED(4) ? L : logical) / S, offset = logical % S;
    return reinterpret_cast<T*>(data + table[page] * columns.stride_p + offset * columns.stride_s);
  };
  const auto moved = [&](int j) { return j >= 0 && j < count && path[j] != j; };
  for (int j0 = 0; j0 < count; j0 += kMoves) {
    const int first = PYSPEC_PLANTED(1) ? count - kMoves - j0 : j0;
    T value[kMoves];
#pragma unroll
    for (int i = 0; i < kMoves; ++i)
      if (moved(first + i)) value[i] = *slot(L + path[first + i]);
#pragma unroll
    for (int i = 0; i < kMoves; ++i)
      if (moved(first + i)) *slot(L + first + i) = value[i];
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    move_paths(const CommitKvParams p, Columns k, Columns v, Columns k_scale, Columns v_scale) {
  const int G = int(p.G), values = G * k.per_head, scales = k_scale.data && !PYSPEC_PLANTED(2) ? G : 0;
  const int i = int(blockIdx.y * kThreads + threadIdx.x), s = i - 2 * values;
  const int64_t b = blockIdx.x;
  if (i < values) {
    move_column<T>(p, k, i, b);
  } else if (s < (PYSPEC_PLANTED(5) ? -1 : 0)) {
    move_column<T>(p, v, i - values, b);
  } else if (s >= 0 && s < scales) {
    move_column<uint32_t>(p, k_scale, s, b);
  } else if (s >= scales && s < 2 * scales) {
    move_column<uint32_t>(p, v_scale, s - scales, b);
  }
}

// The largest power of two up to 16 that divides every address of a column.
constexpr int64_t column_bytes(uint64_t addresses_and_strides) {
  return int64_t(std::min<uint64_t>(16, addresses_and_strides & -addresses_and_strides));
}
static_assert(column_bytes(256 | 4096) == 16 && column_bytes(256 | 20) == 4 && column_bytes(34 | 8) == 2);

uint64_t all_bits(const KvPages& pages, int64_t size) {
  return reinterpret_cast<uintptr_t>(pages.data) |
         uint64_t((pages.stride_p | pages.stride_s | pages.stride_g) * size);
}

}  // namespace

void commit_kv_cuda(const CommitKvParams& p, void* stream) {
  if (p.B * p.E * p.G * p.D == 0) return;
  const int64_t size = size_of(p.kv_dtype);
  const int64_t width =
      column_bytes(uint64_t(p.D * size) | all_bits(p.k_pages, size) | all_bits(p.v_pages, size));
  const auto pages = [&](const KvPages& x) {
    return Columns{static_cast<unsigned char*>(x.data), x.stride_p * size, x.stride_s * size,
                   x.stride_g * size, int(p.D * size / width)};
  };
  const auto scales = [&](float* x) {
    return Columns{reinterpret_cast<unsigned char*>(x), p.S * p.G * 4, p.G * 4, 4, 1};
  };
  const int64_t items = 2 * p.G * (p.D * size / width + (p.k_scale ? 1 : 0));
  const auto kernel = width == 16  ? move_paths<uint4>
                      : width == 8 ? move_paths<uint2>
                      : width == 4 ? move_paths<uint32_t>
                      : width == 2 ? move_paths<uint16_t>
                                   : move_paths<uint8_t>;
  PYSPEC_LAUNCH(kernel, cuda::grid_of(p.B, items, kThreads), kThreads, 0, stream, p, pages(p.k_pages),
                pages(p.v_pages), scales(p.k_scale), scales(p.v_scale));
}

}  // namespace pyspec
