// SPDX-License-Identifier: Apache-2.0
// Whether AMX can be used: the machine has it, the system allows it, and its results are those of AVX-512.
#include <cstring>
#include <vector>

#include "cpu/isa.h"
#include "pyspec/quant_linear.h"
#include "pyspec/quantize_activations.h"
#include "pyspec/w8a8_linear.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

// The set whose results AMX must give: tests that execute tiles in software may have another.
#if !defined(PYSPEC_AMX_LANES)
#define PYSPEC_AMX_LANES avx512
#endif

namespace pyspec {

#if defined(__x86_64__) && defined(__linux__)

namespace amx {
void quant_linear(const QuantLinearParams& p);
void w8a8_linear(const W8A8LinearParams& p);
}  // namespace amx
namespace PYSPEC_AMX_LANES {
void quantize_activations(const QuantizeActivationsParams& p);
void quant_linear(const QuantLinearParams& p);
void w8a8_linear(const W8A8LinearParams& p);
}  // namespace PYSPEC_AMX_LANES

namespace {

#if !defined(PYSPEC_AMX_TWIN)
std::string missing() {
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512vnni"))
    return "this CPU has no AVX-512 VNNI";
  if (!bf16_reason().empty()) return bf16_reason();
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;  // of leaf 7
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (kTile | kInt8)) != (kTile | kInt8))
    return "this CPU has no AMX int8";
  // Leaf 0x1d, palette 1: bytes of a tile and of a row, number of tiles, rows.
  if (!__get_cpuid_count(0x1d, 1, &a, &b, &c, &d) || a >> 16 != 1024 || b != (8u << 16 | 64u) ||
      (c & 0xffffu) != 16)
    return "this CPU's tiles are not 8 of 16 rows of 64 bytes";
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0)
    return "the system does not give the use of AMX tiles (arch_prctl)";
  return "";
}
#else
std::string missing() { return ""; }
#endif

struct Random {
  uint32_t state = 12345;
  uint32_t operator()() { return (state = state * 1664525u + 1013904223u) >> 8; }
};

bool same_quant_linear(QuantFormat format, int64_t M, int64_t K) {
  constexpr int64_t N = 35;
  Random random;
  std::vector<float> x(size_t(M * K)), want(size_t(M * N)), got(want);
  for (float& v : x) v = float(int32_t(random() % 2001) - 1000) / 64.0f;
  std::vector<uint64_t> workspace(size_t(activation_bytes(M, K) / 8 + 16));
  auto* activations = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(workspace.data()) + 63) / 64 * 64);
  // GGUF rows, whose f16 scales are bytes below 0x3c00: at most 1.
  std::vector<uint8_t> rows(size_t(N * gguf_row_bytes(format, K)));
  for (uint8_t& byte : rows) byte = uint8_t(random() % 0x3c);
  PYSPEC_AMX_LANES::quantize_activations({x.data(), activations, M, K, K});
  QuantLinearParams p{activations, rows.data(), nullptr, want.data(), format, false, M, N, K, N};
  PYSPEC_AMX_LANES::quant_linear(p);
  p.out = got.data();
  amx::quant_linear(p);
  return std::memcmp(got.data(), want.data(), got.size() * sizeof(float)) == 0;
}

bool same_w8a8_linear(int64_t M) {
  constexpr int64_t N = 40, K = 192, kBytes = 3 * 3 * 1024;
  Random random;
  std::vector<int8_t> x(size_t(M * K));
  std::vector<uint8_t> weight(kBytes);
  for (int8_t& v : x) v = int8_t(random());
  for (uint8_t& v : weight) v = uint8_t(random());
  std::vector<float> scales(64, 1.0f), want(size_t(M * N)), got(want);
  W8A8LinearParams p{x.data(),
                     reinterpret_cast<const int8_t*>(weight.data()),
                     scales.data(),
                     scales.data(),
                     want.data(),
                     DType::kF32,
                     M,
                     N,
                     K,
                     K,
                     0,
                     true};
  PYSPEC_AMX_LANES::w8a8_linear(p);
  p.out = got.data();
  amx::w8a8_linear(p);
  return std::memcmp(got.data(), want.data(), got.size() * sizeof(float)) == 0;
}

std::string check() {
  if (std::string reason = missing(); !reason.empty()) return reason;
  const FlushDenormals flush;
  bool same = same_w8a8_linear(13) && same_w8a8_linear(40);
  for (const QuantFormat format :
       {QuantFormat::kQ4_0, QuantFormat::kQ4_1, QuantFormat::kQ5_0, QuantFormat::kQ8_0, QuantFormat::kQ6_K})
    same = same && same_quant_linear(format, 14, format == QuantFormat::kQ6_K ? 256 : 288);
  return same ? "" : "its products differ from those of AVX-512 on this machine";
}

}  // namespace

#else

namespace {
std::string check() { return "AMX needs Linux on x86-64"; }
}  // namespace

#endif

const std::string& amx_reason() {
  static const std::string reason = check();
  return reason;
}

}  // namespace pyspec
