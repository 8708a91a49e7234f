// SPDX-License-Identifier: Apache-2.0
// torch bindings of the CUDA kernels: the checks and allocations of csrc/bind, launched on the current stream
// of the tensors' device. Ops that are not here run as their specification on CUDA tensors. With
// PYSPEC_EMULATED the same bindings serve CPU tensors in the namespace pyspec_cuda_emulated, and the kernels
// are those that tests/cuda_emulator has compiled for the CPU.
#include <torch/library.h>

#include "bind/append_kv.h"
#include "bind/build_tree.h"
#include "bind/commit_kv.h"
#include "bind/draw_children.h"
#include "bind/edit_logits.h"
#include "bind/embedding.h"
#include "bind/fp8_linear.h"
#include "bind/linear.h"
#include "bind/quant_embedding.h"
#include "bind/quant_linear.h"
#include "bind/quantize_activations.h"
#include "bind/rms_norm.h"
#include "bind/rms_norm_quantize.h"
#include "bind/rope.h"
#include "bind/sample.h"
#include "bind/silu_mul.h"
#include "bind/softcap.h"
#include "bind/verify_drawn.h"
#include "bind/verify_tree.h"
#include "bind/w4a16_linear.h"
#include "bind/w8a8_linear.h"
#include "cuda/bind_tree_attention.h"

#if defined(PYSPEC_EMULATED)
#include "emulated_binding.h"
#define PYSPEC_CUDA_LIBRARY(m) TORCH_LIBRARY_IMPL(pyspec_cuda_emulated, CPU, m)
#else
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#define PYSPEC_CUDA_LIBRARY(m) TORCH_LIBRARY_IMPL(pyspec, CUDA, m)
#endif

// PYSPEC_CUDA_KERNEL(name, Params): launch_<name>(device, params) calls <name>_cuda of csrc/cuda/<name>.cu.
#if defined(PYSPEC_EMULATED)
#define PYSPEC_CUDA_KERNEL(name, Params)                           \
  void launch_##name(at::Device, const Params& p) {                \
    emulator::compiled_kernel<Params>(#name, #Params)(p, nullptr); \
  }
pyspec::DeviceLimits device_limits(at::Device) { return emulator::device_limits; }
#else
#define PYSPEC_CUDA_KERNEL(name, Params)                                      \
  void launch_##name(at::Device device, const Params& p) {                    \
    const c10::cuda::CUDAGuard guard(device);                                 \
    name##_cuda(p, c10::cuda::getCurrentCUDAStream(device.index()).stream()); \
  }
pyspec::DeviceLimits device_limits(at::Device device) {
  const auto get = [&](cudaDeviceAttr what) {
    int value = 0;
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, what, device.index()));
    return value;
  };
  return {get(cudaDevAttrMultiProcessorCount), get(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          get(cudaDevAttrMaxSharedMemoryPerMultiprocessor)};
}
#endif

namespace pyspec {
namespace {

PYSPEC_CUDA_KERNEL(append_kv, AppendKvParams)
PYSPEC_CUDA_KERNEL(build_tree, BuildTreeParams)
PYSPEC_CUDA_KERNEL(commit_kv, CommitKvParams)
PYSPEC_CUDA_KERNEL(draw_children, DrawChildrenParams)
PYSPEC_CUDA_KERNEL(edit_logits, EditLogitsParams)
PYSPEC_CUDA_KERNEL(embedding, EmbeddingParams)
PYSPEC_CUDA_KERNEL(fp8_linear, Fp8LinearParams)
PYSPEC_CUDA_KERNEL(linear, LinearParams)
PYSPEC_CUDA_KERNEL(quant_embedding, QuantEmbeddingParams)
PYSPEC_CUDA_KERNEL(quant_linear, QuantRowsParams)
PYSPEC_CUDA_KERNEL(quantize_activations, QuantizedRowsParams)
PYSPEC_CUDA_KERNEL(rms_norm, RmsNormParams)
PYSPEC_CUDA_KERNEL(rms_norm_quantize, RmsNormQuantizeParams)
PYSPEC_CUDA_KERNEL(rope, RopeParams)
PYSPEC_CUDA_KERNEL(sample, SampleParams)
PYSPEC_CUDA_KERNEL(silu_mul, SiluMulParams)
PYSPEC_CUDA_KERNEL(softcap, SoftcapParams)
PYSPEC_CUDA_KERNEL(tree_attention, TreeAttentionCudaParams)
PYSPEC_CUDA_KERNEL(tree_attention_plan, TreeAttentionCudaParams)
PYSPEC_CUDA_KERNEL(tree_attention_run, TreeAttentionCudaParams)
PYSPEC_CUDA_KERNEL(verify_drawn, VerifyDrawnParams)
PYSPEC_CUDA_KERNEL(verify_tree, VerifyTreeParams)
PYSPEC_CUDA_KERNEL(w4a16_linear, W4A16LinearParams)
PYSPEC_CUDA_KERNEL(w8a8_linear, W8A8LinearParams)

using CudaTreeAttention = TreeAttention<launch_tree_attention, launch_tree_attention_plan,
                                        launch_tree_attention_run, device_limits>;

}  // namespace

PYSPEC_CUDA_LIBRARY(m) {
  m.impl("add_rms_norm", add_rms_norm<launch_rms_norm>);
  m.impl("append_kv", append_kv<launch_append_kv, Place::kGpu>);
  m.impl("build_tree", build_tree<launch_build_tree, Place::kGpu>);
  m.impl("commit_kv", commit_kv<launch_commit_kv, Place::kGpu>);
  m.impl("draw_children", draw_children<launch_draw_children, Place::kGpu>);
  m.impl("edit_logits", edit_logits<launch_edit_logits, Place::kGpu>);
  m.impl("embedding", embedding<launch_embedding, Place::kGpu>);
  m.impl("fp8_linear", fp8_linear<launch_fp8_linear>);
  m.impl("gelu_mul", gelu_mul<launch_silu_mul>);
  m.impl("linear", linear<launch_linear, Place::kGpu>);
  m.impl("quant_embedding", quant_embedding<launch_quant_embedding, Place::kGpu>);
  m.impl("quant_linear", quant_linear<launch_quantize_activations, launch_quant_linear>);
  m.impl("quantize_activations", quantize_activations<launch_quantize_activations>);
  m.impl("rms_norm", rms_norm<launch_rms_norm>);
  m.impl("rms_norm_quantize", rms_norm_quantize<launch_rms_norm_quantize>);
  m.impl("rope", rope<launch_rope, Place::kGpu>);
  m.impl("sample", sample<launch_sample, Place::kGpu>);
  m.impl("silu_mul", silu_mul<launch_silu_mul>);
  m.impl("softcap", softcap<launch_softcap>);
  m.impl("tree_attention", CudaTreeAttention::op);
  m.impl("tree_attention_plan", CudaTreeAttention::plan);  // schemas: pyspec/plans.py
  m.impl("tree_attention_run", CudaTreeAttention::run);
  m.impl("verify_drawn", verify_drawn<launch_verify_drawn, Place::kGpu>);
  m.impl("verify_tree", verify_tree<launch_verify_tree, Place::kGpu>);
  m.impl("w4a16_linear", w4a16_linear<launch_w4a16_linear, Place::kGpu>);
  m.impl("w8a8_linear", w8a8_linear<launch_w8a8_linear, Place::kGpu>);
}

}  // namespace pyspec
