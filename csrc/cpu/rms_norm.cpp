// SPDX-License-Identifier: Apache-2.0
// CPU rms_norm and add_rms_norm. One item is one row, or a tile of rows where they are quantised; k is
// summed in 16 lanes, then in the fixed tree of reduce_add.
#include "pyspec/rms_norm.h"

#include "cpu/kernel.h"
#include "cpu/quantize_units.h"

namespace pyspec::PYSPEC_ISA {
namespace {

// A row is cheap (0.2 us at K = 576): fewer elements than this are not worth waking a thread for.
constexpr int64_t kSerialElements = 32768;
constexpr int64_t kSerialQuantized = 16384;

// What row m is normalised from; a residual has then been added to.
inline const float* normed(const RmsNormParams& p, int64_t m) {
  return p.residual ? p.residual + m * p.K : p.x + m * p.x_stride_m;
}

// Adds row m to the residual and gives the factor of its normalisation.
float scale_of_row(const RmsNormParams& p, int64_t m) {
  const float* x = p.x + m * p.x_stride_m;
  const int64_t full = p.K / kLanes * kLanes;
  const int rest = int(p.K - full);
  if (p.residual) {
    float* residual = p.residual + m * p.K;
    for (int64_t k = 0; k < full; k += kLanes) store(residual + k, load(residual + k) + load(x + k));
    if (rest) store_n(residual + full, load_n(residual + full, rest) + load_n(x + full, rest), rest);
    x = residual;
  }
  F32 sum = zero();
  for (int64_t k = 0; k < full; k += kLanes) sum = fma(load(x + k), load(x + k), sum);
  if (rest) sum = fma(load_n(x + full, rest), load_n(x + full, rest), sum);
  return 1.0f / std::sqrt(reduce_add(sum) / float(p.K) + p.eps);
}

void norm_row(const RmsNormParams& p, int64_t m) {
  const F32 scale = set1(scale_of_row(p, m));
  const float* x = normed(p, m);
  float* out = p.out + m * p.K;
  const int64_t full = p.K / kLanes * kLanes;
  const int rest = int(p.K - full);
  for (int64_t k = 0; k < full; k += kLanes) store(out + k, load(x + k) * scale * load(p.weight + k));
  if (rest) store_n(out + full, load_n(x + full, rest) * scale * load_n(p.weight + full, rest), rest);
}

void norm_tile(const RmsNormParams& p, int64_t m0) {
  const UnitTile tile(Activations(p.workspace, p.M, p.K), m0, p.M, p.K);
  float scale[kRowTile];
  for (int64_t r = 0; r < tile.R; ++r) scale[r] = scale_of_row(p, m0 + r);
  quantize_units(tile, 0, tile.R * (p.K / kGroup), [&](int64_t m, int64_t k) {
    return load(normed(p, m) + k) * set1(scale[m - m0]) * load(p.weight + k);
  });
}

template <typename F>
void items(int64_t count, bool parallel, const F& item) {
  if (parallel) return parallel_for(count, item);
  for (int64_t i = 0; i < count; ++i) item(i);
}

}  // namespace

void rms_norm(const RmsNormParams& p) {
  if (p.workspace) {
    items((p.M + kRowTile - 1) / kRowTile, p.M * p.K >= kSerialQuantized,
          [&](int64_t i) { norm_tile(p, i * kRowTile); });
  } else {
    items(p.M, p.M * p.K >= kSerialElements, [&](int64_t m) { norm_row(p, m); });
  }
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(rms_norm, RmsNormParams)
