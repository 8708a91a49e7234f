// SPDX-License-Identifier: Apache-2.0
// Checks and views that the ops on KV pages share.
#pragma once

#include "bind/check.h"
#include "bind/launch.h"
#include "pyspec/kv_pages.h"

namespace pyspec {

inline const std::initializer_list<at::ScalarType> kFloatTypes = {at::kFloat, at::kBFloat16, at::kHalf};
inline const std::initializer_list<at::ScalarType> kPageTypes = {at::kFloat, at::kBFloat16, at::kHalf,
                                                                 at::kFloat8_e4m3fn, at::kChar};

inline std::string indexed(const std::string& text, int64_t index) {
  return text + " at index " + std::to_string(index);
}
inline std::string at_index(int64_t b, int64_t j) {
  return " at index [" + std::to_string(b) + ", " + std::to_string(j) + "]";
}

inline KvLayout check_layout(const Checker& check, c10::string_view layout, const at::Tensor& k_pages) {
  check.value(layout == "paged" || layout == "tiled", "kv_layout", "paged|tiled", layout);
  check.value(k_pages.size(1) >= 1, "k_pages", "[P, S, G, D] with S >= 1", list_text(k_pages.sizes()));
  if (layout == "paged") return KvLayout::kPaged;
  check.value(k_pages.size(1) % 16 == 0 && k_pages.size(3) % 2 == 0, "k_pages",
              "[P, S, G, D] with S a multiple of 16 and D even in the tiled layout",
              list_text(k_pages.sizes()));
  return KvLayout::kTiled;
}

// Pages of 8 bits, and only they, have scales; those of f8 are paged. CPU kernels take no f8, GPU kernels
// only the paged layout.
inline void check_scales(const Checker& check, const at::Tensor& k_pages,
                         const std::optional<at::Tensor>& k_scale, const std::optional<at::Tensor>& v_scale,
                         KvLayout layout, Place place) {
  const bool quantised = k_pages.element_size() == 1;
  for (const auto& [name, scale] : {std::pair("k_scale", &k_scale), std::pair("v_scale", &v_scale)})
    check.value(scale->has_value() == quantised, name, "given exactly when pages are f8|i8",
                scale->has_value() ? list_text((*scale)->sizes()) : "None");
  const bool is_f8 = k_pages.scalar_type() == at::kFloat8_e4m3fn;
  check.value(!is_f8 || layout == KvLayout::kPaged, "kv_layout", "paged when pages are f8", "tiled");
  check.type(!is_f8 || place == Place::kGpu, "k_pages", "f32|bf16|f16|i8 on the CPU",
             dtype_name(k_pages.scalar_type()));
  check.value(place == Place::kCpu || layout == KvLayout::kPaged, "kv_layout", "paged on GPUs", "tiled");
}

// Scales as kernels take them; write_back when they are done.
inline at::Tensor usable_scales(const std::optional<at::Tensor>& scale) {
  return scale ? scale->contiguous() : at::Tensor();
}
inline float* data_of(const at::Tensor& scale) {
  return scale.defined() ? scale.mutable_data_ptr<float>() : nullptr;
}
inline void write_back(const at::Tensor& copy, const at::Tensor& original) {
  if (!copy.is_same(original)) original.copy_(copy);
}

// Pages that a kernel can take: rows contiguous, in the tiled layout whole pages.
inline at::Tensor usable_pages(const at::Tensor& pages, KvLayout layout) {
  if (layout == KvLayout::kPaged)
    return pages.stride(3) == 1 || pages.size(3) == 1 ? pages : pages.contiguous();
  const int64_t G = pages.size(2), D = pages.size(3);
  const bool whole = pages.stride(3) == 1 && pages.stride(2) == D && pages.stride(1) == G * D;
  return whole ? pages : pages.contiguous();
}
inline KvPages view_pages(const at::Tensor& pages) {
  return {const_cast<void*>(pages.const_data_ptr()), pages.stride(0), pages.stride(1), pages.stride(2)};
}

// Rows [T, H, D] whose heads lie one after the other.
inline at::Tensor usable_rows(const at::Tensor& x) {
  return x.stride(2) == 1 && x.stride(1) == x.size(2) ? x : x.contiguous();
}

inline void check_rope_table(const Checker& check, const at::Tensor& positions, const at::Tensor& table,
                             int64_t D, Place place) {
  const int64_t X = table.size(0), Y = table.size(1);
  check.value(Y % 2 == 0 && Y <= D, "rope_table", "[X, Y] with Y even and at most D=" + std::to_string(D),
              list_text(table.sizes()));
  if (place == Place::kGpu) return;
  const int32_t* position = positions.const_data_ptr<int32_t>();
  for (int64_t t = 0; t < positions.size(0); ++t)
    if (position[t] < 0 || position[t] >= X)
      check.value(false, "positions", "in [0, X=" + std::to_string(X) + ")",
                  indexed(std::to_string(position[t]), t));
}

}  // namespace pyspec
