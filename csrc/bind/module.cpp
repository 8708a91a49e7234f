// SPDX-License-Identifier: Apache-2.0
// The Python module pyspec._C: loading it registers the compiled ops; it also answers what was compiled and
// chosen, and builds step executors. Pointers come from tensors that the Python side keeps alive
// (pyspec/engine/compiled.py).
#include <pybind11/pybind11.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "bind/step_executor.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"

namespace py = pybind11;

namespace pyspec {
namespace {

template <typename T>
const T* pointer(uintptr_t address) {
  return reinterpret_cast<const T*>(address);
}
template <typename T>
T* target(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void bind_step_executor(py::module_& m) {
  py::class_<Rows>(m, "Rows").def(
      py::init([](uintptr_t data, int64_t columns, int64_t stride, bool of_logits) {
        return Rows{reinterpret_cast<float*>(data), columns, stride, of_logits};
      }));
  py::class_<StepArrays>(m, "StepArrays")
      .def(py::init([](uintptr_t tokens, uintptr_t positions, uintptr_t parents, uintptr_t cu_t,
                       uintptr_t kv_len, uintptr_t page_table, uintptr_t logit_rows, uintptr_t slots,
                       int64_t table_width) {
             return StepArrays{
                 pointer<int32_t>(tokens),     pointer<int32_t>(positions), pointer<int32_t>(parents),
                 pointer<int32_t>(cu_t),       pointer<int32_t>(kv_len),    pointer<int32_t>(page_table),
                 pointer<int32_t>(logit_rows), pointer<int64_t>(slots),     table_width};
           }),
           py::kw_only(), py::arg("tokens"), py::arg("positions"), py::arg("parents"), py::arg("cu_t"),
           py::arg("kv_len"), py::arg("page_table"), py::arg("logit_rows"), py::arg("slots"),
           py::arg("table_width"));
  py::class_<WalkArrays>(m, "WalkArrays")
      .def(py::init([](uintptr_t tokens, uintptr_t parents, uintptr_t cu_t, uintptr_t position,
                       uintptr_t temperature, uintptr_t top_k, uintptr_t top_p, uintptr_t min_p,
                       uintptr_t typical_p, uintptr_t seed, uintptr_t stream, uintptr_t path,
                       uintptr_t path_len, uintptr_t emitted, uintptr_t logprobs) {
             return WalkArrays{
                 pointer<int32_t>(tokens),   pointer<int32_t>(parents),   pointer<int32_t>(cu_t),
                 pointer<int32_t>(position), pointer<float>(temperature), pointer<int32_t>(top_k),
                 pointer<float>(top_p),      pointer<float>(min_p),       pointer<float>(typical_p),
                 pointer<int64_t>(seed),     pointer<int32_t>(stream),    target<int32_t>(path),
                 target<int32_t>(path_len),  target<int32_t>(emitted),    target<float>(logprobs)};
           }),
           py::kw_only(), py::arg("tokens"), py::arg("parents"), py::arg("cu_t"), py::arg("position"),
           py::arg("temperature"), py::arg("top_k"), py::arg("top_p"), py::arg("min_p"), py::arg("typical_p"),
           py::arg("seed"), py::arg("stream"), py::arg("path"), py::arg("path_len"), py::arg("emitted"),
           py::arg("logprobs"));
  py::class_<CacheShape>(m, "CacheShape")
      .def(py::init([](uintptr_t k, uintptr_t v, uintptr_t k_scale, uintptr_t v_scale, int64_t layers,
                       int64_t pages, int64_t page_size, int64_t kv_heads, int64_t head_dim, int dtype,
                       bool tiled) {
             return CacheShape{k,
                               v,
                               reinterpret_cast<float*>(k_scale),
                               reinterpret_cast<float*>(v_scale),
                               layers,
                               pages,
                               page_size,
                               kv_heads,
                               head_dim,
                               DType(dtype),
                               tiled ? KvLayout::kTiled : KvLayout::kPaged};
           }),
           py::kw_only(), py::arg("k"), py::arg("v"), py::arg("k_scale"), py::arg("v_scale"),
           py::arg("layers"), py::arg("pages"), py::arg("page_size"), py::arg("kv_heads"),
           py::arg("head_dim"), py::arg("dtype"), py::arg("tiled"));
  const auto weight = [](uintptr_t address) { return pointer<float>(address); };
  py::class_<StepExecutor>(m, "StepExecutor")
      .def(py::init<const StepArrays&, const CacheShape&, int64_t, int64_t>(), py::arg("arrays"),
           py::arg("cache"), py::arg("max_tokens"), py::arg("heads"))
      .def("rms_norm", [=](StepExecutor& e, Rows x, uintptr_t w, Rows out, int64_t heads, float eps,
                           bool quantized) { e.rms_norm(x, weight(w), out, heads, eps, quantized); })
      .def("add_rms_norm",
           [=](StepExecutor& e, Rows residual, Rows delta, uintptr_t w, Rows out, float eps, bool quantized) {
             e.add_rms_norm(residual, delta, weight(w), out, eps, quantized);
           })
      .def("rope", [=](StepExecutor& e, Rows x, uintptr_t table, int64_t heads,
                       int64_t rotary) { e.rope(x, weight(table), heads, rotary); })
      .def("append_kv", [=](StepExecutor& e, Rows k, Rows v, uintptr_t table, int64_t layer,
                            int64_t rotary) { e.append_kv(k, v, weight(table), layer, rotary); })
      .def("tree_attention", &StepExecutor::tree_attention)
      .def("embedding", [](StepExecutor& e, uintptr_t w, int dtype, Rows out,
                           float scale) { e.embedding(pointer<char>(w), DType(dtype), out, scale); })
      .def("quant_embedding",
           [](StepExecutor& e, uintptr_t w, int format, Rows out, float scale) {
             e.quant_embedding(pointer<uint8_t>(w), QuantFormat(format), out, scale);
           })
      .def("linear", [=](StepExecutor& e, Rows x, uintptr_t w, int dtype, uintptr_t bias,
                         Rows out) { e.linear(x, pointer<char>(w), DType(dtype), weight(bias), out); })
      .def("quantize", &StepExecutor::quantize)
      .def("quant_linear",
           [=](StepExecutor& e, uintptr_t w, int format, uintptr_t bias, Rows x, Rows out) {
             e.quant_linear(pointer<uint8_t>(w), QuantFormat(format), weight(bias), x, out);
           })
      .def("gated", &StepExecutor::gated)
      .def("softcap", &StepExecutor::softcap)
      .def("gather_rows", &StepExecutor::gather_rows)
      .def("copy", &StepExecutor::copy)
      .def(
          "run", [](StepExecutor& e, int64_t T, int64_t R, int64_t B) { e.run({T, R, B}); },
          py::call_guard<py::gil_scoped_release>())
      .def(
          "walk",
          [](StepExecutor& e, const WalkArrays& arrays, Rows logits, uintptr_t edited, int64_t R, int64_t B,
             int64_t max_path, bool wanted, int64_t num_logprobs, uintptr_t top_tokens,
             uintptr_t top_logprobs) {
            e.walk(arrays, logits, pointer<float>(edited), {0, R, B}, max_path,
                   {wanted, num_logprobs, target<int32_t>(top_tokens), target<float>(top_logprobs)});
          },
          py::call_guard<py::gil_scoped_release>())
      .def(
          "commit",
          [](const StepExecutor& e, uintptr_t path, uintptr_t path_len, int64_t B, int64_t E) {
            e.commit(pointer<int32_t>(path), pointer<int32_t>(path_len), B, E);
          },
          py::call_guard<py::gil_scoped_release>())
      .def("workspace_bytes", &StepExecutor::workspace_bytes);
}

}  // namespace
}  // namespace pyspec

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of pyspec";
  m.def("cpu_isa", [] { return std::string(pyspec::isa_name(pyspec::active_isa())); });
  m.def("cpu_features", &pyspec::cpu_features);
  m.def("amx_reason", &pyspec::amx_reason);
  m.def("bf16_reason", &pyspec::bf16_reason);
  m.def("trim_heap", [] {  // free memory between live blocks goes back to the system
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
  });
  m.def("num_threads", &pyspec::num_threads);
  m.def("set_num_threads", &pyspec::set_num_threads, py::arg("threads"));
#if defined(PYSPEC_WITH_CUDA)
  m.attr("with_cuda") = true;
#else
  m.attr("with_cuda") = false;
#endif
  pyspec::bind_step_executor(m);
}
