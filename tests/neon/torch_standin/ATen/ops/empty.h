// SPDX-License-Identifier: Apache-2.0
// at::empty stands in the header of tensors.
#pragma once

#include "ATen/core/Tensor.h"
