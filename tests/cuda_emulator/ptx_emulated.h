// SPDX-License-Identifier: Apache-2.0
// The emulated twin of csrc/cuda/ptx.cuh: the same names, with the CUDA language for a C++ compiler.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda_language.h"
#include "intrinsics.h"

#define PYSPEC_PLANTED(n) (::emulator::planted_bug() == (n))
#define PYSPEC_DYNAMIC_SHARED(name) unsigned char* const name = ::emulator::this_thread->shared_memory

namespace emulator {

// That of the current call, 0 for none: one library of a kernel serves all of them. The same throughout a
// launch, so it is asked for once where the compiler sees that; and a call, since the checker would take a
// load for one of the kernel's.
[[gnu::const]] int planted_bug();

// Register operands go by value: an array whose address leaves the kernel would be checked at every access.
template <typename T>
struct Four {
  T at[4];
};
using Words = Four<uint32_t>;

Words ldmatrix(const void* row, int matrices, bool transposed, Where where);
Four<float> mma_bf16(Four<float> d, Words a, uint32_t b0, uint32_t b1, Where where);
Four<float> mma_f16(Four<float> d, Words a, uint32_t b0, uint32_t b1, Where where);
Four<float> mma_e4m3(Four<float> d, Words a, uint32_t b0, uint32_t b1, Where where);
Four<int> mma_s8(Four<int> d, Words a, uint32_t b0, uint32_t b1, Where where);
void copy_async(void* smem, const void* global, int bytes, bool valid, Where where);
void commit_copies();
void wait_for_copies(int pending, Where where);

}  // namespace emulator

namespace pyspec::cuda {

using emulator::Four;
using emulator::Words;

template <typename... Params, typename... Args>
void launch(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, size_t smem_bytes, void*,
            Args&&... args) {
  emulator::launch(name, reinterpret_cast<const void*>(kernel), grid, block, smem_bytes,
                   [kernel, ... params = static_cast<Params>(args)] { kernel(params...); });
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, Where where = Where::here()) {
  const Words words = emulator::ldmatrix(row, 4, false, where);
  for (int i = 0; i < 4; ++i) r[i] = words.at[i];
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, Where where = Where::here()) {
  const Words words = emulator::ldmatrix(row, 4, true, where);
  for (int i = 0; i < 4; ++i) r[i] = words.at[i];
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row, Where where = Where::here()) {
  const Words words = emulator::ldmatrix(row, 2, false, where);
  for (int i = 0; i < 2; ++i) r[i] = words.at[i];
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, Where where = Where::here()) {
  const Words words = emulator::ldmatrix(row, 2, true, where);
  for (int i = 0; i < 2; ++i) r[i] = words.at[i];
}

template <typename T, Four<T> (*kMma)(Four<T>, Words, uint32_t, uint32_t, Where)>
inline void mma(T (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Where where) {
  const Four<T> sum = kMma({d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, b0, b1, where);
  for (int i = 0; i < 4; ++i) d[i] = sum.at[i];
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                     Where where = Where::here()) {
  mma<float, emulator::mma_bf16>(d, a, b0, b1, where);
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                    Where where = Where::here()) {
  mma<float, emulator::mma_f16>(d, a, b0, b1, where);
}
inline void mma_e4m3(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                     Where where = Where::here()) {
  mma<float, emulator::mma_e4m3>(d, a, b0, b1, where);
}
inline void mma_s8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                   Where where = Where::here()) {
  mma<int, emulator::mma_s8>(d, a, b0, b1, where);
}

inline void cp_async_16(void* smem, const void* global, bool valid = true, Where where = Where::here()) {
  emulator::copy_async(smem, global, 16, valid, where);
}
inline void cp_async_8(void* smem, const void* global, bool valid = true, Where where = Where::here()) {
  emulator::copy_async(smem, global, 8, valid, where);
}
inline void cp_async_4(void* smem, const void* global, bool valid = true, Where where = Where::here()) {
  emulator::copy_async(smem, global, 4, valid, where);
}
inline void cp_async_commit() { emulator::commit_copies(); }
template <int kPending>
void cp_async_wait(Where where = Where::here()) {
  emulator::wait_for_copies(kPending, where);
}

inline void named_barrier_sync(int id, int threads, Where where = Where::here()) {
  emulator::block_barrier(id, threads, emulator::Reduction::kNone, false, where);
}

inline uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) { return (a & b) | c; }
inline float exp2_approx(float x) { return std::exp2(x); }
inline float log2_approx(float x) { return std::log2(x); }

}  // namespace pyspec::cuda
