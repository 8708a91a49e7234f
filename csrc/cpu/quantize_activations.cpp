// SPDX-License-Identifier: Apache-2.0
// CPU quantisation of activations to int8, a scale per row and group of 32. One item is a part of a tile of
// rows.
#include "pyspec/quantize_activations.h"

#include "cpu/kernel.h"
#include "cpu/quantize_units.h"

namespace pyspec::PYSPEC_ISA {

constexpr int64_t kSerialElements = 32768;  // 3 us of work: less is not worth waking a thread for

void quantize_activations(const QuantizeActivationsParams& p) {
  quantize_rows(p.workspace, p.M, p.K, p.M * p.K >= kSerialElements,
                [&](int64_t m, int64_t k) { return load(p.x + m * p.x_stride_m + k); });
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(quantize_activations, QuantizeActivationsParams)
