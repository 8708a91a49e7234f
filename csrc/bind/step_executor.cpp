// SPDX-License-Identifier: Apache-2.0
// The compiled executor: a step program as a list of launches over fixed pointers, run by one call per step. No math here.
#include "bind/step_executor.h"

#include <pybind11/stl.h>

#include <functional>
#include <memory>
#include <vector>

#include "cpu/thread_pool.h"
