// SPDX-License-Identifier: Apache-2.0
// ldmatrix and mma.sync: the last lane to arrive does the work of the warp. A product is summed in double in
// ascending k and rounded once; tensor cores keep fewer bits, in an order of their own.
#include <array>

#include "counters.h"
#include "runtime.h"
#include "shadow.h"

namespace emulator {

namespace {

constexpr int kRows = 16, kColumns = 8;

Exchange& exchange_of(Block& block, int warp, int lane) {
  return block.fibers[size_t(warp * kWarp + lane)].exchange;
}

void need_all_lanes(const char* what, Where where) {
  const Fiber& fiber = *this_block->current;
  if (this_block->warps[fiber.warp].live == kAllLanes) return;
  report("mask", Place::line(where), thread_name(fiber) + ": " + what + " needs all 32 lanes of a warp");
  abort_block();
}

template <int kMatrices, bool kTransposed>
void complete_ldmatrix(Block& block, int warp, uint32_t) {
  const uint16_t* rows[kMatrices * 8];
  for (int i = 0; i < kMatrices * 8; ++i)
    rows[i] = reinterpret_cast<const uint16_t*>(exchange_of(block, warp, i).value);
  for (int lane = 0; lane < kWarp; ++lane) {
    Exchange& own = exchange_of(block, warp, lane);
    const int major = lane / 4, minor = lane % 4 * 2;
    for (int m = 0; m < kMatrices; ++m) {
      const uint16_t* const* matrix = rows + m * 8;
      own.d.at[m] = kTransposed ? matrix[minor][major] | uint32_t(matrix[minor + 1][major]) << 16
                                : matrix[major][minor] | uint32_t(matrix[major][minor + 1]) << 16;
    }
  }
}

const std::array<float, 65536>& half_values() {
  static const auto values = [] {
    std::array<float, 65536> table;
    for (unsigned i = 0; i < 65536; ++i) table[i] = __half2float(__ushort_as_half(uint16_t(i)));
    return table;
  }();
  return values;
}

const std::array<float, 256>& e4m3_values() {
  static const auto values = [] {
    std::array<float, 256> table;
    for (unsigned i = 0; i < 256; ++i) {
      const __half_raw half = __nv_cvt_fp8_to_halfraw(__nv_fp8_storage_t(i), __NV_E4M3);
      table[i] = __half2float(__half(half));
    }
    return table;
  }();
  return values;
}

struct Bf16 {
  static constexpr int kBits = 16;
  static float value(uint32_t bits) { return std::bit_cast<float>(bits << 16); }
};
struct F16 {
  static constexpr int kBits = 16;
  static float value(uint32_t bits) { return half_values()[bits & 0xffff]; }
};
struct E4m3 {
  static constexpr int kBits = 8;
  static float value(uint32_t bits) { return e4m3_values()[bits & 0xff]; }
};
struct S8 {
  static constexpr int kBits = 8;
  static int32_t value(uint32_t bits) { return int8_t(bits); }
};

// Lane 4 g + t holds in a[i] row g + 8 (i % 2), the elements from (t + 4 (i / 2)) of a register's number on;
// in b0 and b1 the same of column g; in d[i] row g + 8 (i / 2), column 2 t + i % 2. (PTX ISA, matrix
// fragments.)
template <typename Element, typename Sum, typename Result>
void complete_mma(Block& block, int warp, uint32_t) {
  constexpr int kEach = 32 / Element::kBits, kDepth = 8 * kEach;
  Sum a[kRows][kDepth], b[kDepth][kColumns];
  for (int lane = 0; lane < kWarp; ++lane) {
    const Exchange& own = exchange_of(block, warp, lane);
    const int g = lane / 4, t = lane % 4;
    for (int e = 0; e < kEach; ++e) {
      const int shift = e * Element::kBits;
      constexpr uint32_t kMask = (1u << Element::kBits) - 1;
      for (int i = 0; i < 4; ++i)
        a[g + 8 * (i % 2)][kEach * (t + 4 * (i / 2)) + e] = Element::value(own.a.at[i] >> shift & kMask);
      b[kEach * t + e][g] = Element::value(own.b0 >> shift & kMask);
      b[kEach * (t + 4) + e][g] = Element::value(own.b1 >> shift & kMask);
    }
  }
  if (settings().counting) count_mma(&a[0][0], &b[0][0], kDepth);
  for (int row = 0; row < kRows; ++row) {
    Sum sum[kColumns];
    Exchange* lanes[4];
    const int half = row / 8 * 2;
    for (int t = 0; t < 4; ++t) {
      lanes[t] = &exchange_of(block, warp, row % 8 * 4 + t);
      for (int i = 0; i < 2; ++i) sum[2 * t + i] = Sum(std::bit_cast<Result>(lanes[t]->d.at[half + i]));
    }
    for (int k = 0; k < kDepth; ++k)
      for (int column = 0; column < kColumns; ++column) sum[column] += a[row][k] * b[k][column];
    for (int t = 0; t < 4; ++t)
      for (int i = 0; i < 2; ++i) lanes[t]->d.at[half + i] = std::bit_cast<uint32_t>(Result(sum[2 * t + i]));
  }
}

template <typename Element, typename Sum, typename Result>
Four<Result> mma(const char* name, Four<Result> d, Words a, uint32_t b0, uint32_t b1, Where where) {
  need_all_lanes(name, where);
  Exchange& own = this_block->current->exchange;
  own.a = a;
  own.b0 = b0;
  own.b1 = b1;
  own.d = std::bit_cast<Words>(d);
  meet(kAllLanes, name, where, complete_mma<Element, Sum, Result>);
  return std::bit_cast<Four<Result>>(own.d);
}

}  // namespace

Words ldmatrix(const void* row, int matrices, bool transposed, Where where) {
  Block& block = *this_block;
  Fiber& fiber = *block.current;
  need_all_lanes("ldmatrix", where);
  if (fiber.lane < matrices * 8) check_shared_operand("ldmatrix", row, 16, false, where);
  fiber.exchange.value = reinterpret_cast<uint64_t>(row);
  meet(kAllLanes, "ldmatrix", where,
       matrices == 4 ? (transposed ? complete_ldmatrix<4, true> : complete_ldmatrix<4, false>)
                     : (transposed ? complete_ldmatrix<2, true> : complete_ldmatrix<2, false>));
  return fiber.exchange.d;
}

Four<float> mma_bf16(Four<float> d, Words a, uint32_t b0, uint32_t b1, Where where) {
  return mma<Bf16, double>("mma_bf16", d, a, b0, b1, where);
}
Four<float> mma_f16(Four<float> d, Words a, uint32_t b0, uint32_t b1, Where where) {
  return mma<F16, double>("mma_f16", d, a, b0, b1, where);
}
Four<float> mma_e4m3(Four<float> d, Words a, uint32_t b0, uint32_t b1, Where where) {
  return mma<E4m3, double>("mma_e4m3", d, a, b0, b1, where);
}
Four<int> mma_s8(Four<int> d, Words a, uint32_t b0, uint32_t b1, Where where) {
  return mma<S8, int32_t>("mma_s8", d, a, b0, b1, where);
}

}  // namespace emulator
