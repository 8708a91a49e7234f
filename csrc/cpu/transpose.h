// SPDX-License-Identifier: Apache-2.0
// Sixteen registers of sixteen words, transposed. Included inside kernel files, after cpu/kernel.h.
#pragma once

namespace pyspec::PYSPEC_ISA {

inline void transpose(I32 (&rows)[16]) {
#if defined(PYSPEC_ISA_AVX512)
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(rows[i].v, rows[i + 1].v);
    t[i + 1] = _mm512_unpackhi_epi32(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      rows[i + 2 * j].v = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
      rows[i + 2 * j + 1].v = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
  for (int j = 0; j < 4;
       ++j) {  // rows[4 i + j]: quarter columns of four rows; now 128-bit quarters change places
    const __m512i ab = _mm512_shuffle_i32x4(rows[j].v, rows[4 + j].v, 0x88);
    const __m512i cd = _mm512_shuffle_i32x4(rows[8 + j].v, rows[12 + j].v, 0x88);
    const __m512i ef = _mm512_shuffle_i32x4(rows[j].v, rows[4 + j].v, 0xdd);
    const __m512i gh = _mm512_shuffle_i32x4(rows[8 + j].v, rows[12 + j].v, 0xdd);
    t[j] = _mm512_shuffle_i32x4(ab, cd, 0x88);
    t[8 + j] = _mm512_shuffle_i32x4(ab, cd, 0xdd);
    t[4 + j] = _mm512_shuffle_i32x4(ef, gh, 0x88);
    t[12 + j] = _mm512_shuffle_i32x4(ef, gh, 0xdd);
  }
  for (int i = 0; i < 16; ++i) rows[i].v = t[i];
#else
  alignas(64) int32_t from[16][16], to[16][16];
  for (int i = 0; i < 16; ++i) istore(from[i], rows[i]);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) to[i][j] = from[j][i];
  for (int i = 0; i < 16; ++i) rows[i] = iload(to[i]);
#endif
}

}  // namespace pyspec::PYSPEC_ISA
