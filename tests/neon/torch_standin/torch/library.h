// SPDX-License-Identifier: Apache-2.0
// The registry that TORCH_LIBRARY_IMPL fills: every op by its name, as a function of values.
#pragma once

#include <functional>
#include <map>
#include <tuple>
#include <type_traits>
#include <variant>

#include "ATen/core/Tensor.h"

namespace torch {

// One argument or result of an op; monostate is None.
using Value = std::variant<std::monostate, at::Tensor, int64_t, double, bool, std::string, at::ScalarType>;
using Values = std::vector<Value>;
using Op = std::function<Values(Values&)>;

inline std::map<std::string, Op>& ops() {
  static std::map<std::string, Op> registry;
  return registry;
}

// A value as the parameter type of a binding.
template <typename T>
struct Unboxed {
  static T& get(Value& value) { return std::get<T>(value); }
};
template <>
struct Unboxed<std::optional<at::Tensor>> {
  static std::optional<at::Tensor> get(Value& value) {
    return value.index() ? std::optional(std::get<at::Tensor>(value)) : std::nullopt;
  }
};
template <>
struct Unboxed<std::string_view> {
  static std::string_view get(Value& value) { return std::get<std::string>(value); }
};

class Library {
 public:
  template <typename Result, typename... Args>
  void impl(const char* name, Result (*kernel)(Args...)) {
    ops()[name] = [=](Values& values) {
      if (values.size() != sizeof...(Args))
        throw std::logic_error(std::string(name) + ": number of arguments");
      return boxed(kernel, values, std::index_sequence_for<Args...>());
    };
  }

 private:
  template <typename Result, typename... Args, size_t... I>
  static Values boxed(Result (*kernel)(Args...), Values& values, std::index_sequence<I...>) {
    const auto call = [&] { return kernel(Unboxed<std::remove_cvref_t<Args>>::get(values[I])...); };
    if constexpr (std::is_void_v<Result>) {
      call();
      return {};
    } else if constexpr (std::is_same_v<Result, at::Tensor>) {
      return {call()};
    } else {
      return std::apply([](auto&&... outputs) { return Values{outputs...}; }, call());
    }
  }
};

struct Registration {
  explicit Registration(void (*fill)(Library&)) {
    Library library;
    fill(library);
  }
};

}  // namespace torch

#define PYSPEC_STANDIN_JOIN(a, b) a##b
#define PYSPEC_STANDIN_IMPL(fill, registration, m)     \
  static void fill(torch::Library&);                   \
  static const torch::Registration registration(fill); \
  static void fill(torch::Library& m)
#define PYSPEC_STANDIN_NUMBERED(n, m) \
  PYSPEC_STANDIN_IMPL(PYSPEC_STANDIN_JOIN(fill_, n), PYSPEC_STANDIN_JOIN(registration_, n), m)
#define TORCH_LIBRARY_IMPL(space, key, m) PYSPEC_STANDIN_NUMBERED(__COUNTER__, m)
