// SPDX-License-Identifier: Apache-2.0
// torch binding of quant_embedding on the CPU.
#include "bind/quant_embedding.h"

#include <torch/library.h>

namespace pyspec {

TORCH_LIBRARY_IMPL(pyspec, CPU, m) {
  m.impl("quant_embedding", quant_embedding<on_cpu<QuantEmbeddingParams, quant_embedding_cpu>, Place::kCpu>);
}

}  // namespace pyspec
