// SPDX-License-Identifier: Apache-2.0
// Contract checks of the torch bindings: the dim letters, the rules and the messages of pyspec/contract.py.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "pyspec/dtype.h"

namespace pyspec {

// One letter of the shape table, bound by the first tensor that has it.
struct Dim {
  const char* name;
  int64_t size = -1;
  const char* from = "";  // the tensor that bound it, and which of its dimensions
  int64_t from_dim = 0;
};

// One entry of a shape: a letter, a literal, or an expression whose value the binding has computed from bound
// letters.
struct DimRef {
  Dim* letter = nullptr;
  std::string text;
  int64_t value = -1;
  DimRef(Dim& dim) : letter(&dim), text(dim.name) {}                          // NOLINT: implicit by design
  DimRef(int64_t literal) : text(std::to_string(literal)), value(literal) {}  // NOLINT
  DimRef(std::string expression, int64_t size) : text(std::move(expression)), value(size) {}
};

inline std::string dtype_name(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return "f32";
    case at::kDouble:
      return "f64";
    case at::kBFloat16:
      return "bf16";
    case at::kHalf:
      return "f16";
    case at::kFloat8_e4m3fn:
      return "f8";
    case at::kChar:
      return "i8";
    case at::kByte:
      return "u8";
    case at::kInt:
      return "i32";
    case at::kLong:
      return "i64";
    case at::kBool:
      return "bool";
    default:
      return c10::toString(type);
  }
}

template <typename T>
std::string list_text(const T& items) {
  std::ostringstream out;
  out << "[";
  bool first = true;
  for (const auto& item : items) {
    out << (first ? "" : ", ") << item;
    first = false;
  }
  out << "]";
  return out.str();
}

// Checks one tensor after another: rank, dtype, device, then every size. Throws ValueError or TypeError.
class Checker {
 public:
  explicit Checker(const char* op) : op_(op) {}

  void tensor(const char* name, const at::Tensor& t, std::initializer_list<DimRef> dims,
              std::initializer_list<at::ScalarType> dtypes) {
    // Texts are made only for a refusal: this runs at every call.
    const auto shape = [&] {
      std::vector<std::string> names;
      for (const DimRef& dim : dims) names.push_back(dim.text);
      return list_text(names);
    };
    const auto allowed = [&] {
      std::string names;
      for (const at::ScalarType type : dtypes) names += (names.empty() ? "" : "|") + dtype_name(type);
      return names;
    };
    TORCH_CHECK_VALUE(t.dim() == int64_t(dims.size()), op_, ": ", name, " must be ", shape(), ", got ",
                      list_text(t.sizes()));
    const bool known = std::find(dtypes.begin(), dtypes.end(), t.scalar_type()) != dtypes.end();
    TORCH_CHECK_TYPE(known, op_, ": ", name, " must be ", allowed(), ", got ", dtype_name(t.scalar_type()));
    if (!device_) {
      device_ = t.device();
      first_ = name;
    }
    TORCH_CHECK_VALUE(*device_ == t.device(), op_, ": ", name, " must be on ", device_->str(), " (from ",
                      first_, "), got ", t.device().str());
    int64_t i = 0;
    for (const DimRef& dim : dims) {
      const int64_t size = t.size(i);
      if (dim.letter && dim.letter->size < 0) {
        dim.letter->size = size;
        dim.letter->from = name;
        dim.letter->from_dim = i;
      } else if (dim.letter) {
        TORCH_CHECK_VALUE(dim.letter->size == size, op_, ": ", name, " must be ", shape(), " with ", dim.text,
                          "=", dim.letter->size, " (from ", dim.letter->from, ".size(", dim.letter->from_dim,
                          ")), got ", list_text(t.sizes()));
      } else {
        TORCH_CHECK_VALUE(dim.value == size, op_, ": ", name, " must be ", shape(), " with ", dim.text, "=",
                          dim.value, ", got ", list_text(t.sizes()));
      }
      ++i;
    }
  }

  // A rule about values: `<op>: <name> must be <rule>, got <value>`.
  template <typename T>
  void value(bool ok, const char* name, const std::string& rule, const T& got) const {
    TORCH_CHECK_VALUE(ok, op_, ": ", name, " must be ", rule, ", got ", got);
  }
  // The same about a dtype: TypeError.
  void type(bool ok, const char* name, const std::string& rule, const std::string& got) const {
    TORCH_CHECK_TYPE(ok, op_, ": ", name, " must be ", rule, ", got ", got);
  }

 private:
  const char* op_;
  std::optional<at::Device> device_;
  const char* first_ = "";
};

inline DType to_dtype(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return DType::kF32;
    case at::kBFloat16:
      return DType::kBF16;
    case at::kHalf:
      return DType::kF16;
    case at::kFloat8_e4m3fn:
      return DType::kF8;
    default:
      return DType::kI8;
  }
}

}  // namespace pyspec
