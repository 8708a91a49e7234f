// SPDX-License-Identifier: Apache-2.0
// Python module pyspec._host: host-side structures, without torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <mutex>

#include "suffix_index.h"

namespace py = pybind11;

namespace {

// Long appends run without the GIL, so the mutex, not the GIL, keeps threads apart.
class PySuffixIndex {
 public:
  PySuffixIndex(int64_t min_match, int64_t max_match, int64_t max_candidates, int64_t max_tokens)
      : index_(min_match, max_match, max_candidates, max_tokens) {}

  std::unique_ptr<PySuffixIndex> copy() {
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::unique_ptr<PySuffixIndex>(new PySuffixIndex(index_));
  }

  size_t size() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return index_.size();
  }

  void append_array(const py::array_t<int32_t, py::array::c_style>& tokens) {
    if (tokens.ndim() != 1) {
      throw py::value_error("SuffixIndex.append: tokens must be one-dimensional, got " +
                            std::to_string(tokens.ndim()) + " dimensions");
    }
    append(tokens.data(), static_cast<size_t>(tokens.size()));
  }

  void append_list(const std::vector<int64_t>& tokens) {
    std::vector<int32_t> narrow(tokens.size());
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] < 0 || tokens[i] > INT32_MAX) {
        throw py::value_error("SuffixIndex.append: tokens must be in [0, 2**31), got tokens[" +
                              std::to_string(i) + "] = " + std::to_string(tokens[i]));
      }
      narrow[i] = static_cast<int32_t>(tokens[i]);
    }
    append(narrow.data(), narrow.size());
  }

  void end_document() {
    const std::lock_guard<std::mutex> lock(mutex_);
    index_.end_document();
  }

  py::tuple propose(int64_t root, int64_t budget, int64_t max_depth, double min_probability) {
    pyspec::SuffixProposal tree;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      tree = index_.propose(root, budget, max_depth, min_probability);
    }
    const auto size = static_cast<py::ssize_t>(tree.tokens.size());
    return py::make_tuple(py::array_t<int32_t>(size, tree.tokens.data()),
                          py::array_t<int32_t>(size, tree.parents.data()),
                          py::array_t<float>(size, tree.probability.data()));
  }

 private:
  static constexpr size_t kLongAppend = 1024;  // about 0.1 ms, 1000 times what releasing the GIL costs

  explicit PySuffixIndex(const pyspec::SuffixIndex& index) : index_(index) {}

  void append(const int32_t* tokens, size_t num_tokens) {
    if (num_tokens < kLongAppend) {
      const std::lock_guard<std::mutex> lock(mutex_);
      index_.append(tokens, num_tokens);
    } else {
      const py::gil_scoped_release release;
      const std::lock_guard<std::mutex> lock(mutex_);
      index_.append(tokens, num_tokens);
    }
  }

  std::mutex mutex_;
  pyspec::SuffixIndex index_;
};

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Host-side structures of pyspec";
  py::class_<PySuffixIndex>(m, "SuffixIndex", "Compiled twin of pyspec.drafts.suffix_reference.SuffixIndex.")
      .def(py::init<int64_t, int64_t, int64_t, int64_t>(), py::arg("min_match") = 1,
           py::arg("max_match") = 32, py::arg("max_candidates") = 64, py::arg("max_tokens") = 1 << 20)
      .def("__len__", &PySuffixIndex::size)
      .def("copy", &PySuffixIndex::copy)
      .def("append", &PySuffixIndex::append_array, py::arg("tokens").noconvert())
      .def("append", &PySuffixIndex::append_list, py::arg("tokens"))
      .def("end_document", &PySuffixIndex::end_document)
      .def("propose", &PySuffixIndex::propose, py::arg("root"), py::arg("budget"), py::arg("max_depth") = 32,
           py::arg("min_probability") = 0.02);
}
