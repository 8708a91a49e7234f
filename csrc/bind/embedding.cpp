// SPDX-License-Identifier: Apache-2.0
// torch binding of embedding on the CPU.
#include "bind/embedding.h"

#include <torch/library.h>

namespace pyspec {

TORCH_LIBRARY_IMPL(pyspec, CPU, m) {
  m.impl("embedding", embedding<on_cpu<EmbeddingParams, embedding_cpu>, Place::kCpu>);
}

}  // namespace pyspec
