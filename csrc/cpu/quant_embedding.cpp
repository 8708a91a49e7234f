// SPDX-License-Identifier: Apache-2.0
// CPU rows of a quantised table as f32. One item is one token.
#include "pyspec/quant_embedding.h"

#include "cpu/kernel.h"
#include "cpu/quant_pack.h"

namespace pyspec::PYSPEC_ISA {
namespace {

// Lane c of a packed block: multiplier * (d * (value - offset) + min), the products exact, then times scale.
void unpack_channel(const QuantEmbeddingParams& p, const uint8_t* block, int c, float* out) {
  const QuantFormatInfo& f = info(p.format);
  const int offset = f.offset_shift < 0 ? 0 : 1 << f.offset_shift;
  float multiplier;
  std::memcpy(&multiplier, block + 4 * c, 4);
  const uint8_t* values = block + values_offset(p.format, p.K);
  for (int64_t g = 0; g < p.K / kGroup; ++g, out += kGroup) {
    const auto* scales = reinterpret_cast<const uint16_t*>(block + 64 + g * scale_bytes(p.format)) + c;
    const float d0 = f16_to_f32(scales[0]), d1 = f.half_groups ? f16_to_f32(scales[16]) : d0;
    const float min = f.has_min ? f16_to_f32(scales[16]) : 0.0f;
    const uint8_t* lines = values + g * value_bytes(p.format) + 4 * c;
    for (int i = 0; i < 32; ++i) {
      const int q =
          f.bits == 8 ? lines[i / 4 * 64 + i % 4] : lines[i % 16 / 4 * 64 + i % 4] >> (i / 16 * 4) & 15;
      out[i] = (float(q - offset) * (i < 16 ? d0 : d1) + min) * multiplier * p.scale;
    }
  }
}

}  // namespace

void quant_embedding(const QuantEmbeddingParams& p) {
  const int64_t block_bytes = packed_block_bytes(p.format, p.K);
  auto token = [&](int64_t t) {
    const int64_t id = p.ids[t];
    float* out = p.out + t * p.out_stride_t;
    if (p.packed) return unpack_channel(p, p.weight + id / kChannels * block_bytes, int(id % kChannels), out);
    auto* block = static_cast<uint8_t*>(thread_scratch(size_t(block_bytes)));
    pack_channel(p.format, p.K, p.weight + id * gguf_row_bytes(p.format, p.K), block, 0);
    unpack_channel(p, block, 0, out);
  };
  if (p.T * p.K < 16384) {  // some 10 us of work
    for (int64_t t = 0; t < p.T; ++t) token(t);
  } else {
    parallel_for(p.T, token);
  }
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(quant_embedding, QuantEmbeddingParams)
