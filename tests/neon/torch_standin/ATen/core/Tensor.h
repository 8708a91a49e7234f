// SPDX-License-Identifier: Apache-2.0
// The little of torch's C++ interface that csrc/bind uses, for machines that have no torch: strided tensors
// on the CPU, their dtypes, errors. Every tensor's memory ends, to a multiple of 64 bytes, at a page that
// cannot be touched; what lies between is checked when the tensor goes. New memory is filled with NaN.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pyspec/dtype.h"

namespace c10 {

using string_view = std::string_view;

struct ValueError : std::runtime_error {
  using runtime_error::runtime_error;
};
struct TypeError : std::runtime_error {
  using runtime_error::runtime_error;
};

template <typename Error, typename... Parts>
void check(bool ok, const Parts&... parts) {
  if (ok) return;
  std::ostringstream text;
  (text << ... << parts);
  throw Error(text.str());
}

}  // namespace c10

#define TORCH_CHECK_VALUE(...) c10::check<c10::ValueError>(__VA_ARGS__)
#define TORCH_CHECK_TYPE(...) c10::check<c10::TypeError>(__VA_ARGS__)

namespace at {

// In the order of pyspec.contract.DTYPES.
enum ScalarType : int8_t {
  kFloat,
  kDouble,
  kBFloat16,
  kHalf,
  kFloat8_e4m3fn,
  kChar,
  kByte,
  kInt,
  kLong,
  kBool
};
using IntArrayRef = std::vector<int64_t>;

inline int64_t size_of(ScalarType type) {
  constexpr int64_t kSizes[] = {4, 8, 2, 2, 1, 1, 1, 4, 8, 1};
  return kSizes[type];
}

struct Device {
  std::string str() const { return "cpu"; }
  bool operator==(const Device&) const = default;
};

struct TensorOptions {
  TensorOptions(ScalarType type) : type(type) {}  // NOLINT: implicit as torch's
  TensorOptions dtype(ScalarType other) const { return other; }
  ScalarType type;
};

class Memory {
 public:
  static constexpr size_t kPage = 65536, kAlign = 64;  // pages of 4, 16 or 64 KiB
  inline static bool overrun = false;                  // something was written behind a tensor

  // `shift`: how far the first byte lies behind a multiple of 64.
  Memory(size_t bytes, size_t shift) {
    const size_t used = (shift + bytes + kAlign - 1) / kAlign * kAlign;
    mapped_ = (used + kPage) / kPage * kPage + kPage;
    base_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    end_ = base_ + mapped_ - kPage;
    if (base_ == MAP_FAILED || mprotect(base_, mapped_ - kPage, PROT_READ | PROT_WRITE))
      throw std::bad_alloc();
    data_ = end_ - used + shift;
    std::memset(data_, kNan, bytes);
    std::memset(data_ + bytes, kSlack, size_t(end_ - data_) - bytes);
    slack_ = data_ + bytes;
  }
  ~Memory() {
    overrun = overrun || std::any_of(slack_, end_, [](char byte) { return byte != kSlack; });
    munmap(base_, mapped_);
  }
  Memory(const Memory&) = delete;
  char* data() const { return data_; }

 private:
  static constexpr char kNan = '\xff', kSlack = '\xa5';
  size_t mapped_;
  char *base_, *end_, *data_, *slack_;
};

class Tensor {
 public:
  Tensor() = default;
  Tensor(std::shared_ptr<Memory> memory, ScalarType type, IntArrayRef sizes, IntArrayRef strides)
      : memory_(std::move(memory)),
        data_(memory_->data()),
        type_(type),
        sizes_(std::move(sizes)),
        strides_(std::move(strides)) {}

  bool defined() const { return memory_ != nullptr; }
  bool is_same(const Tensor& other) const { return memory_ == other.memory_ && data_ == other.data_; }
  Device device() const { return {}; }
  ScalarType scalar_type() const { return type_; }
  TensorOptions options() const { return type_; }
  int64_t element_size() const { return size_of(type_); }
  int64_t dim() const { return int64_t(sizes_.size()); }
  int64_t size(int64_t d) const { return sizes_.at(size_t(d)); }
  int64_t stride(int64_t d) const { return strides_.at(size_t(d)); }
  const IntArrayRef& sizes() const { return sizes_; }
  int64_t numel() const {
    int64_t n = 1;
    for (const int64_t size : sizes_) n *= size;
    return n;
  }
  const void* const_data_ptr() const { return data_; }
  void* mutable_data_ptr() const { return data_; }
  template <typename T>
  const T* const_data_ptr() const {
    return reinterpret_cast<const T*>(data_);
  }
  template <typename T>
  T* mutable_data_ptr() const {
    return reinterpret_cast<T*>(data_);
  }
  Tensor contiguous() const;
  Tensor clone() const;
  Tensor to(ScalarType type) const;  // between floats of up to 32 bits, to float alone
  Tensor narrow(int64_t d, int64_t start, int64_t length) const {
    Tensor part = *this;
    part.data_ += start * stride(d) * element_size();
    part.sizes_[size_t(d)] = length;
    return part;
  }
  void copy_(const Tensor& other) const;

 private:
  // The elements' addresses in the order of their indices.
  std::vector<char*> elements() const {
    std::vector<char*> found{data_};
    for (size_t d = 0; d < sizes_.size(); ++d) {
      std::vector<char*> next;
      next.reserve(found.size() * size_t(sizes_[d]));
      for (char* at : found)
        for (int64_t i = 0; i < sizes_[d]; ++i) next.push_back(at + i * strides_[d] * element_size());
      found = std::move(next);
    }
    return found;
  }
  bool is_contiguous() const {
    int64_t step = 1;
    for (size_t d = sizes_.size(); d-- > 0; step *= sizes_[d])
      if (sizes_[d] != 1 && strides_[d] != step) return numel() == 0;
    return true;
  }

  std::shared_ptr<Memory> memory_;
  char* data_ = nullptr;
  ScalarType type_ = kFloat;
  IntArrayRef sizes_, strides_;
};

inline Tensor empty(const IntArrayRef& sizes, TensorOptions options) {
  IntArrayRef strides(sizes.size());
  int64_t step = 1;
  for (size_t d = sizes.size(); d-- > 0; step *= std::max<int64_t>(sizes[d], 1)) strides[d] = step;
  int64_t bytes = size_of(options.type);
  for (const int64_t size : sizes) bytes *= size;
  return Tensor(std::make_shared<Memory>(size_t(bytes), 0), options.type, sizes, strides);
}

inline void Tensor::copy_(const Tensor& other) const {
  const std::vector<char*> to = elements(), from = other.elements();
  for (size_t i = 0; i < to.size(); ++i) std::memcpy(to[i], from[i], size_t(element_size()));
}
inline Tensor Tensor::clone() const {
  const Tensor copy = empty(sizes_, options());
  copy.copy_(*this);
  return copy;
}
inline Tensor zeros(const IntArrayRef& sizes, TensorOptions options) {
  const Tensor made = empty(sizes, options);
  std::memset(made.mutable_data_ptr(), 0, size_t(made.numel() * made.element_size()));
  return made;
}
inline Tensor Tensor::to(ScalarType type) const {
  if (type == type_) return *this;
  if (type != kFloat || (type_ != kBFloat16 && type_ != kHalf))
    throw std::logic_error("to: only from bf16|f16 to f32");
  const Tensor wide = empty(sizes_, type);
  float* out = wide.mutable_data_ptr<float>();
  for (const char* at : elements()) {
    uint16_t half;
    std::memcpy(&half, at, sizeof half);
    *out++ = type_ == kHalf ? pyspec::f16_to_f32(half) : pyspec::bf16_to_f32(half);
  }
  return wide;
}
inline Tensor Tensor::contiguous() const { return is_contiguous() ? *this : clone(); }

}  // namespace at

namespace c10 {

inline std::string toString(at::ScalarType type) { return "dtype " + std::to_string(type); }

}  // namespace c10
