// SPDX-License-Identifier: Apache-2.0
// Calls of tree_attention's kernels for Python (test_bf16_twin.py): that of avx512_bf16 with VDPBF16PS in
// software, and the generic one. Pages are contiguous.
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/thread_pool.h"
#include "pyspec/tree_attention.h"

namespace pyspec {
namespace avx512_bf16 {
void tree_attention(const TreeAttentionParams& p);
}
namespace generic {
void tree_attention(const TreeAttentionParams& p);
}

// What isa.cpp asks; no kernel here uses tiles.
const std::string& amx_reason() {
  static const std::string reason = "left out";
  return reason;
}

// sizes: B, T, H, G, D, S, W. out [T, H, D] f32, lse [T, H].
extern "C" __attribute__((visibility("default"))) void attention(bool twin, const float* q, void* k, void* v,
                                                                 const float* k_scale, const float* v_scale,
                                                                 const int32_t* table, const int32_t* kv_len,
                                                                 const int32_t* cu_t, const int32_t* parents,
                                                                 float* out, float* lse, const int64_t* sizes,
                                                                 bool tiled, int64_t window, float softcap) {
  const FlushDenormals flush;
  set_num_threads(1);
  const int64_t B = sizes[0], T = sizes[1], H = sizes[2], G = sizes[3], D = sizes[4], S = sizes[5],
                W = sizes[6];
  const size_t bytes = tree_attention_workspace_bytes(T, H, D, W * S, 1);
  TreeAttentionPlan plan;
  plan.build({kv_len, cu_t, parents, B}, H, G, D, window, bytes, 1);
  std::vector<float> memory(size_t(plan.workspace_floats()) + 16);
  auto* workspace = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
  const KvPages keys{k, S * G * D, G * D, D}, values{v, S * G * D, G * D, D};
  (twin ? avx512_bf16::tree_attention : generic::tree_attention)({&plan,
                                                                  q,
                                                                  keys,
                                                                  values,
                                                                  table,
                                                                  out,
                                                                  lse,
                                                                  workspace,
                                                                  H,
                                                                  G,
                                                                  D,
                                                                  S,
                                                                  W,
                                                                  H * D,
                                                                  DType::kF32,
                                                                  k_scale ? DType::kI8 : DType::kBF16,
                                                                  tiled ? KvLayout::kTiled : KvLayout::kPaged,
                                                                  0.25f,
                                                                  softcap,
                                                                  k_scale,
                                                                  v_scale});
}

}  // namespace pyspec
