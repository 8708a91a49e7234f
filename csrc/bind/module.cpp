// SPDX-License-Identifier: Apache-2.0
// The Python module pyspec._C: loading it registers the compiled ops; it also answers what was compiled and
// chosen.
#include <pybind11/pybind11.h>

#include "cpu/isa.h"
#include "cpu/thread_pool.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of pyspec";
  m.def("cpu_isa", [] { return std::string(pyspec::isa_name(pyspec::active_isa())); });
  m.def("cpu_features", &pyspec::cpu_features);
  m.def("num_threads", &pyspec::num_threads);
  m.def("set_num_threads", &pyspec::set_num_threads, pybind11::arg("threads"));
#if defined(PYSPEC_WITH_CUDA)
  m.attr("with_cuda") = true;
#else
  m.attr("with_cuda") = false;
#endif
}
