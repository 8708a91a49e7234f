// SPDX-License-Identifier: Apache-2.0
// CPU softcap. One item is a run of kRun elements.
#include "pyspec/softcap.h"

#include "cpu/kernel.h"

namespace pyspec::PYSPEC_ISA {
namespace {

constexpr int64_t kRun = 16384;

F32 capped(F32 x, float cap) {
  const F32 one = set1(1.0f);
  const F32 y = min(max(x * set1(1.0f / cap), set1(-20.0f)), set1(20.0f));  // tanh is +-1 in f32 beyond 9.1
  return set1(cap) * (one - set1(2.0f) / (exp2(y * set1(2.885390082f)) + one));
}

}  // namespace

void softcap(const SoftcapParams& p) {
  const int64_t size = p.M * p.K;
  parallel_for((size + kRun - 1) / kRun, [&](int64_t run) {
    const int64_t end = std::min(size, (run + 1) * kRun);
    for (int64_t i = run * kRun; i < end; i += kLanes) {
      const int n = int(std::min<int64_t>(kLanes, end - i));
      if (n == kLanes)
        store(p.out + i, capped(load(p.x + i), p.cap));
      else
        store_n(p.out + i, capped(load_n(p.x + i, n), p.cap), n);
    }
  });
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(softcap, SoftcapParams)
