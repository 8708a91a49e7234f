// SPDX-License-Identifier: Apache-2.0
// at::Device stands in the header of tensors.
#pragma once

#include "ATen/core/Tensor.h"
