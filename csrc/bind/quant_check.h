// SPDX-License-Identifier: Apache-2.0
// Checks that the bindings of quantised weights share: the rules and messages of
// pyspec/spec/pack_quant_weight.py and quant_linear.py.
#pragma once

#include <string_view>

#include "bind/check.h"
#include "bind/launch.h"
#include "pyspec/quant_format.h"

namespace pyspec {

inline QuantFormat check_format(const Checker& check, std::string_view name) {
  std::string names;
  for (int i = 0; i < int(std::size(kQuantFormats)); ++i) {
    if (name == kQuantFormats[i].name) return QuantFormat(i);
    names += std::string(i ? "|" : "") + kQuantFormats[i].name;
  }
  check.value(false, "format", names, name);
  return QuantFormat::kQ4_0;
}

// GGUF rows of whole blocks.
inline void check_gguf_rows(const Checker& check, const at::Tensor& qweight, QuantFormat format) {
  const int64_t size = info(format).block_bytes;
  check.value(
      qweight.size(1) > 0 && qweight.size(1) % size == 0, "qweight",
      "[N, Y] with Y a multiple of " + std::to_string(size) + " (bytes of a " + info(format).name + " block)",
      list_text(qweight.sizes()));
}

// The channels of a weight in its layout.
inline int64_t check_layout(const Checker& check, std::string_view layout, int64_t num_rows, int64_t blocks,
                            bool* packed) {
  *packed = layout == "packed";
  check.value(*packed || layout == "rows", "layout", "rows|packed", layout);
  if (*packed) {
    std::ostringstream rule;
    rule << "in (" << 16 * (blocks - 1) << ", " << 16 * blocks << "] (from qweight.size(0)=" << blocks
         << " blocks of 16)";
    check.value(16 * (blocks - 1) < num_rows && num_rows <= 16 * blocks, "num_rows", rule.str(), num_rows);
    return num_rows;
  }
  check.value(num_rows == 0 || num_rows == blocks, "num_rows",
              "0 or " + std::to_string(blocks) + " (from qweight.size(0))", num_rows);
  return blocks;
}

// Ids of a table's rows, before anything reads them.
inline void check_ids(const Checker& check, const at::Tensor& ids, int64_t count, Place place) {
  if (place == Place::kGpu) return;
  const int32_t* id = ids.const_data_ptr<int32_t>();
  const std::string rule = "in [0, " + std::to_string(count) + ")";
  for (int64_t t = 0; t < ids.numel(); ++t) check.value(id[t] >= 0 && id[t] < count, "ids", rule, id[t]);
}

}  // namespace pyspec
