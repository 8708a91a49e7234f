// SPDX-License-Identifier: Apache-2.0
// The CUDA language for a C++ compiler: qualifiers, built-in variables, barriers, warp functions and atomics.
// The vector types and the conversions of 16- and 8-bit floats are NVIDIA's own headers, which run on the
// host.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __noinline__
#undef __launch_bounds__
#undef __grid_constant__
#undef __align__
#define __global__
#define __device__
#define __host__
#define __shared__ error_take_PYSPEC_DYNAMIC_SHARED_which_can_be_checked
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

namespace emulator {

// A line of a kernel: `Where where = Where::here()` as the last parameter of a function is its caller's line.
struct Where {
  const char* file;
  int line;
  static constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// What a CUDA thread sees of itself.
struct ThreadView {
  uint3 thread_index, block_index;
  dim3 block_dim, grid_dim;
  unsigned char* shared_memory;
};
extern __thread const ThreadView* this_thread __attribute__((tls_model("initial-exec")));

void launch(const char* kernel, const void* function, dim3 grid, dim3 block, size_t smem_bytes,
            const std::function<void()>& body);

enum class Reduction { kNone, kCount, kAnd, kOr };
int block_barrier(int id, int threads, Reduction reduction, bool predicate, Where where);
void warp_barrier(uint32_t mask, Where where);
void memory_fence(bool whole_device);

enum class Shuffle { kIndex, kXor, kUp, kDown };
uint64_t shuffle(uint32_t mask, uint64_t value, Shuffle kind, int argument, int width, Where where);
uint32_t ballot(uint32_t mask, bool predicate, Where where);
uint32_t match_any(uint32_t mask, uint64_t value, Where where);
enum class WarpReduction { kAdd, kMin, kMax, kAnd, kOr, kXor };
uint32_t reduce(uint32_t mask, uint32_t value, WarpReduction kind, bool is_signed, Where where);
uint32_t active_lanes();
void trap(Where where);

// An atomic operation has begun: checks the address and orders blocks (see shadow.h).
void begin_atomic(const void* address, int bytes, Where where);

template <typename T, typename Update>
T atomic(T* address, Where where, Update update) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8);
  using Bits =
      std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
  begin_atomic(address, sizeof(T), where);
  return std::bit_cast<T>(update(reinterpret_cast<Bits*>(address)));
}

// Replaces the value by `next(value)`; returns the old one. Not instrumented: begin_atomic is the check.
template <typename T, typename Next>
__attribute__((no_sanitize("thread"))) T exchange_loop(T* address, Where where, Next next) {
  return atomic(address, where, [&](auto* bits) __attribute__((no_sanitize("thread"))) {
    auto old = __atomic_load_n(bits, __ATOMIC_SEQ_CST);
    while (!__atomic_compare_exchange_n(
        bits, &old, std::bit_cast<std::remove_reference_t<decltype(*bits)>>(next(std::bit_cast<T>(old))),
        false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
    return old;
  });
}

template <typename T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "shuffles move up to 8 bytes");
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <typename T>
T from_bits(uint64_t bits) {
  T value;
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulator

#define threadIdx (::emulator::this_thread->thread_index)
#define blockIdx (::emulator::this_thread->block_index)
#define blockDim (::emulator::this_thread->block_dim)
#define gridDim (::emulator::this_thread->grid_dim)
constexpr int warpSize = 32;

using emulator::Where;

inline void __syncthreads(Where where = Where::here()) {
  emulator::block_barrier(0, 0, emulator::Reduction::kNone, false, where);
}
inline int __syncthreads_count(int predicate, Where where = Where::here()) {
  return emulator::block_barrier(0, 0, emulator::Reduction::kCount, predicate != 0, where);
}
inline int __syncthreads_and(int predicate, Where where = Where::here()) {
  return emulator::block_barrier(0, 0, emulator::Reduction::kAnd, predicate != 0, where);
}
inline int __syncthreads_or(int predicate, Where where = Where::here()) {
  return emulator::block_barrier(0, 0, emulator::Reduction::kOr, predicate != 0, where);
}
inline void __syncwarp(uint32_t mask = 0xffffffffu, Where where = Where::here()) {
  emulator::warp_barrier(mask, where);
}
inline void __threadfence() { emulator::memory_fence(true); }
inline void __threadfence_block() { emulator::memory_fence(false); }

template <typename T>
T __shfl_sync(uint32_t mask, T value, int lane, int width = 32, Where where = Where::here()) {
  return emulator::from_bits<T>(
      emulator::shuffle(mask, emulator::to_bits(value), emulator::Shuffle::kIndex, lane, width, where));
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int lanes, int width = 32, Where where = Where::here()) {
  return emulator::from_bits<T>(
      emulator::shuffle(mask, emulator::to_bits(value), emulator::Shuffle::kXor, lanes, width, where));
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32, Where where = Where::here()) {
  return emulator::from_bits<T>(
      emulator::shuffle(mask, emulator::to_bits(value), emulator::Shuffle::kUp, int(delta), width, where));
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32, Where where = Where::here()) {
  return emulator::from_bits<T>(
      emulator::shuffle(mask, emulator::to_bits(value), emulator::Shuffle::kDown, int(delta), width, where));
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, Where where = Where::here()) {
  return emulator::ballot(mask, predicate != 0, where);
}
inline int __any_sync(uint32_t mask, int predicate, Where where = Where::here()) {
  return emulator::ballot(mask, predicate != 0, where) != 0;
}
inline int __all_sync(uint32_t mask, int predicate, Where where = Where::here()) {
  return emulator::ballot(mask, predicate == 0, where) == 0;
}
template <typename T>
uint32_t __match_any_sync(uint32_t mask, T value, Where where = Where::here()) {
  return emulator::match_any(mask, emulator::to_bits(value), where);
}
inline uint32_t __activemask() { return emulator::active_lanes(); }

template <typename T>
T __reduce_add_sync(uint32_t mask, T value, Where where = Where::here()) {
  return T(emulator::reduce(mask, uint32_t(value), emulator::WarpReduction::kAdd, false, where));
}
template <typename T>
T __reduce_min_sync(uint32_t mask, T value, Where where = Where::here()) {
  return T(
      emulator::reduce(mask, uint32_t(value), emulator::WarpReduction::kMin, std::is_signed_v<T>, where));
}
template <typename T>
T __reduce_max_sync(uint32_t mask, T value, Where where = Where::here()) {
  return T(
      emulator::reduce(mask, uint32_t(value), emulator::WarpReduction::kMax, std::is_signed_v<T>, where));
}
inline uint32_t __reduce_and_sync(uint32_t mask, uint32_t value, Where where = Where::here()) {
  return emulator::reduce(mask, value, emulator::WarpReduction::kAnd, false, where);
}
inline uint32_t __reduce_or_sync(uint32_t mask, uint32_t value, Where where = Where::here()) {
  return emulator::reduce(mask, value, emulator::WarpReduction::kOr, false, where);
}
inline uint32_t __reduce_xor_sync(uint32_t mask, uint32_t value, Where where = Where::here()) {
  return emulator::reduce(mask, value, emulator::WarpReduction::kXor, false, where);
}
inline void __trap(Where where = Where::here()) { emulator::trap(where); }

template <typename T>
T atomicAdd(T* address, std::type_identity_t<T> value, Where where = Where::here()) {
  return emulator::exchange_loop(address, where, [=](T old) { return T(old + value); });
}
template <typename T>
T atomicSub(T* address, std::type_identity_t<T> value, Where where = Where::here()) {
  return emulator::exchange_loop(address, where, [=](T old) { return T(old - value); });
}
template <typename T>
T atomicMax(T* address, std::type_identity_t<T> value, Where where = Where::here()) {
  return emulator::exchange_loop(address, where, [=](T old) { return old < value ? value : old; });
}
template <typename T>
T atomicMin(T* address, std::type_identity_t<T> value, Where where = Where::here()) {
  return emulator::exchange_loop(address, where, [=](T old) { return value < old ? value : old; });
}
template <typename T>
T atomicOr(T* address, std::type_identity_t<T> value, Where where = Where::here()) {
  return emulator::exchange_loop(address, where, [=](T old) { return T(old | value); });
}
template <typename T>
T atomicAnd(T* address, std::type_identity_t<T> value, Where where = Where::here()) {
  return emulator::exchange_loop(address, where, [=](T old) { return T(old & value); });
}
template <typename T>
T atomicXor(T* address, std::type_identity_t<T> value, Where where = Where::here()) {
  return emulator::exchange_loop(address, where, [=](T old) { return T(old ^ value); });
}
template <typename T>
T atomicExch(T* address, std::type_identity_t<T> value, Where where = Where::here()) {
  return emulator::exchange_loop(address, where, [=](T) { return value; });
}
template <typename T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value,
            Where where = Where::here()) {
  return emulator::exchange_loop(address, where, [=](T old) {
    return emulator::to_bits(old) == emulator::to_bits(expected) ? value : old;
  });
}
inline unsigned atomicInc(unsigned* address, unsigned limit, Where where = Where::here()) {
  return emulator::exchange_loop(address, where, [=](unsigned old) { return old >= limit ? 0 : old + 1; });
}
