// SPDX-License-Identifier: Apache-2.0
// Serves calls of the CPU ops, through the bindings of csrc/bind, on standard input and output: what
// tests/neon/neon_emulator.py runs under qemu-user. Little endian throughout.
//
//   request  string op, u32 values, values;  op "threads" sets the threads, "isa", "features" and "ops" ask
//   reply    u8 status, then for 0 u32 values and the results, then the tensors that the op writes in place,
//            for 1 (value), 2 (type) and 3 (others) the error as a string
//   value    u8 kind, then: 0 None; 1 tensor; 2 i64; 3 f64; 4 u8 bool; 5 string; 6 u8 dtype
//   string   u32 length, bytes
//   tensor   u8 dtype, u8 in place, u8 dimensions, i64 sizes and strides, u8 address modulo 64,
//            u64 length, bytes; in replies contiguous
#include <cstdio>
#include <cstdlib>

#include "cpu/isa.h"
#include "cpu/thread_pool.h"
#include "torch/library.h"

namespace {

using torch::Value;
using torch::Values;

template <typename T>
T read() {
  T value;
  if (std::fread(&value, sizeof value, 1, stdin) != 1) std::exit(0);  // the client is gone
  return value;
}
void read_bytes(void* to, size_t bytes) {
  if (bytes && std::fread(to, 1, bytes, stdin) != bytes) std::exit(0);
}
std::string read_string() {
  std::string text(read<uint32_t>(), '\0');
  read_bytes(text.data(), text.size());
  return text;
}
template <typename T>
void write(T value) {
  std::fwrite(&value, sizeof value, 1, stdout);
}
void write_string(const std::string& text) {
  write(uint32_t(text.size()));
  std::fwrite(text.data(), 1, text.size(), stdout);
}

at::Tensor read_tensor(bool* in_place) {
  const auto type = at::ScalarType(read<uint8_t>());
  *in_place = read<uint8_t>();
  const size_t dims = read<uint8_t>();
  at::IntArrayRef sizes(dims), strides(dims);
  for (auto* numbers : {&sizes, &strides})
    for (int64_t& number : *numbers) number = read<int64_t>();
  const size_t shift = read<uint8_t>(), bytes = read<uint64_t>();
  auto memory = std::make_shared<at::Memory>(bytes, shift);
  read_bytes(memory->data(), bytes);
  return at::Tensor(memory, type, sizes, strides);
}

void write_tensor(const at::Tensor& strided) {
  const at::Tensor t = strided.contiguous();
  write(uint8_t(1));
  write(uint8_t(t.scalar_type()));
  write(uint8_t(t.dim()));
  for (const int64_t size : t.sizes()) write(size);
  const size_t bytes = size_t(t.numel() * t.element_size());
  write(uint64_t(bytes));
  std::fwrite(t.const_data_ptr(), 1, bytes, stdout);
}

Value read_value(std::vector<at::Tensor>& in_place) {
  switch (read<uint8_t>()) {
    case 0:
      return {};
    case 1: {
      bool written = false;
      const at::Tensor t = read_tensor(&written);
      if (written) in_place.push_back(t);
      return t;
    }
    case 2:
      return read<int64_t>();
    case 3:
      return read<double>();
    case 4:
      return read<uint8_t>() != 0;
    case 5:
      return read_string();
    default:
      return at::ScalarType(read<uint8_t>());
  }
}

Values answer(const std::string& op, Values& arguments) {
  if (op == "threads") {
    pyspec::set_num_threads(int(std::get<int64_t>(arguments[0])));
    return {};
  }
  if (op == "isa") return {std::string(pyspec::isa_name(pyspec::active_isa()))};
  if (op == "features") return {pyspec::cpu_features()};
  if (op == "ops") {
    std::string names;
    for (const auto& [name, kernel] : torch::ops()) names += name + " ";
    return {names};
  }
  return torch::ops().at(op)(arguments);
}

void serve() {
  const std::string op = read_string();
  std::vector<at::Tensor> in_place;
  Values arguments(read<uint32_t>());
  for (Value& argument : arguments) argument = read_value(in_place);
  uint8_t status = 0;
  std::string error;
  Values results;
  try {
    at::Memory::overrun = false;
    results = answer(op, arguments);
  } catch (const c10::ValueError& caught) {
    status = 1, error = caught.what();
  } catch (const std::invalid_argument& caught) {
    status = 1, error = caught.what();
  } catch (const c10::TypeError& caught) {
    status = 2, error = caught.what();
  } catch (const std::exception& caught) {
    status = 3, error = caught.what();
  }
  write(status);
  if (status) return write_string(error);
  results.insert(results.end(), in_place.begin(), in_place.end());
  write(uint32_t(results.size()));
  for (const Value& result : results) {
    if (const auto* text = std::get_if<std::string>(&result)) {
      write(uint8_t(5));
      write_string(*text);
    } else {
      write_tensor(std::get<at::Tensor>(result));
    }
  }
}

}  // namespace

int main() {
  for (;;) {
    serve();
    write(uint8_t(at::Memory::overrun));  // after every tensor of the call is gone
    std::fflush(stdout);
  }
}
