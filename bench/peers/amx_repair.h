// SPDX-License-Identifier: Apache-2.0
// Put in front of llama.cpp's sources where they are compiled with AMX by GCC. GCC 12's tile intrinsics do
// not tell the compiler that a tile load reads memory, and that a configuration is 64 bytes long, so that
// stores before them may be dropped.
#pragma once

#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_loadconfig
#define PYSPEC_TILE_LOAD(name, tile, base, stride)                 \
  __asm__ volatile(name " (%0,%1,1), %%tmm" #tile                  \
                   :                                               \
                   : "r"((const void*)(base)), "r"((long)(stride)) \
                   : "memory")
#define _tile_loadd(tile, base, stride) PYSPEC_TILE_LOAD_OF("tileloadd", tile, base, stride)
#define _tile_stream_loadd(tile, base, stride) PYSPEC_TILE_LOAD_OF("tileloaddt1", tile, base, stride)
#define PYSPEC_TILE_LOAD_OF(name, tile, base, stride) PYSPEC_TILE_LOAD(name, tile, base, stride)
#define _tile_loadconfig(config) \
  __asm__ volatile("ldtilecfg %0" : : "m"(*(const char (*)[64])(config)) : "memory")
#endif
