// SPDX-License-Identifier: Apache-2.0
// What every CPU kernel file includes: lanes (vec.h), threads, and the choice of instruction set at run time.
//
// A kernel file csrc/cpu/<op>.cpp defines `void <op>(const <Op>Params&)` inside namespace pyspec::PYSPEC_ISA
// and ends with PYSPEC_DISPATCH(<op>, <Op>Params). setup.py compiles it once per instruction set; the generic
// translation unit defines the public `<op>_cpu`, which calls the variant that fits the machine. Files that
// say PYSPEC_DISPATCH_DOTS have variants for products of int8 as well, AMX's and ARM's, those that say
// PYSPEC_DISPATCH_BF16 one for products of bf16; no other kernel would gain from these.
#pragma once

#include "cpu/isa.h"
#include "cpu/thread_pool.h"
#include "cpu/vec.h"
#include "pyspec/dtype.h"

#if defined(PYSPEC_ISA_BASE) && defined(__x86_64__)
#define PYSPEC_DISPATCH_X86(op, Params, amx_set, bf16_set) \
  namespace pyspec {                                       \
  namespace avx2 {                                         \
  void op(const Params& p);                                \
  }                                                        \
  namespace avx512 {                                       \
  void op(const Params& p);                                \
  }                                                        \
  namespace bf16_set {                                     \
  void op(const Params& p);                                \
  }                                                        \
  namespace amx_set {                                      \
  void op(const Params& p);                                \
  }                                                        \
  void op##_cpu(const Params& p) {                         \
    const FlushDenormals flush;                            \
    switch (active_isa()) {                                \
      case Isa::kAmx:                                      \
        return amx_set::op(p);                             \
      case Isa::kAvx512Bf16:                               \
        return bf16_set::op(p);                            \
      case Isa::kAvx512:                                   \
        return avx512::op(p);                              \
      case Isa::kAvx2:                                     \
        return avx2::op(p);                                \
      default:                                             \
        return PYSPEC_ISA::op(p);                          \
    }                                                      \
  }                                                        \
  }
#define PYSPEC_DISPATCH(op, Params) PYSPEC_DISPATCH_X86(op, Params, avx512, avx512)
#define PYSPEC_DISPATCH_DOTS(op, Params) PYSPEC_DISPATCH_X86(op, Params, amx, avx512)
// AMX is offered only where products of bf16 are (cpu/amx_check.cpp).
#define PYSPEC_DISPATCH_BF16(op, Params) PYSPEC_DISPATCH_X86(op, Params, avx512_bf16, avx512_bf16)
#elif defined(PYSPEC_ISA_BASE)
#define PYSPEC_DISPATCH(op, Params) \
  namespace pyspec {                \
  void op##_cpu(const Params& p) {  \
    const FlushDenormals flush;     \
    PYSPEC_ISA::op(p);              \
  }                                 \
  }
#if defined(__aarch64__)
#define PYSPEC_DISPATCH_DOTS(op, Params) \
  namespace pyspec {                     \
  namespace neon_dotprod {               \
  void op(const Params& p);              \
  }                                      \
  namespace neon_i8mm {                  \
  void op(const Params& p);              \
  }                                      \
  void op##_cpu(const Params& p) {       \
    const FlushDenormals flush;          \
    switch (active_isa()) {              \
      case Isa::kNeonI8mm:               \
        return neon_i8mm::op(p);         \
      case Isa::kNeonDotprod:            \
        return neon_dotprod::op(p);      \
      default:                           \
        return PYSPEC_ISA::op(p);        \
    }                                    \
  }                                      \
  }
#else
#define PYSPEC_DISPATCH_DOTS(op, Params) PYSPEC_DISPATCH(op, Params)
#endif
#define PYSPEC_DISPATCH_BF16(op, Params) PYSPEC_DISPATCH(op, Params)
#else
#define PYSPEC_DISPATCH(op, Params)
#define PYSPEC_DISPATCH_DOTS(op, Params)
#define PYSPEC_DISPATCH_BF16(op, Params)
#endif
