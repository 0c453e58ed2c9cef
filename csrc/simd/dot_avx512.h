// Integer dot products (dot.h) by AVX-512.
#pragma once

#include <immintrin.h>

#include "simd/dot.h"

namespace {

constexpr int kBias = 0;

OCTAVO_INLINE Bytes prepare(vi codes) { return {codes, (vi)_mm512_abs_epi8((__m512i)codes)}; }

// Magnitudes times bytes that have taken over the sign: two such products fit 16 bits, for 2 * 128 * 127 < 2^15.
OCTAVO_INLINE void add_bytes(vi& sums, const Bytes& w, vi x) {
    const __m512i minus = _mm512_sub_epi8(_mm512_setzero_si512(), (__m512i)x);
    const __m512i turned = _mm512_mask_mov_epi8((__m512i)x, _mm512_movepi8_mask((__m512i)w.codes), minus);
    const __m512i pairs = _mm512_maddubs_epi16((__m512i)w.magnitudes, turned);
    sums = (vi)_mm512_add_epi32((__m512i)sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}

// Sums of up to 16 products each, in 16 bits: 16 * 15 * 127 < 2^15.
OCTAVO_INLINE void add_nibbles(vi& sums, vi codes, vi x) {
    sums = (vi)_mm512_add_epi16((__m512i)sums, _mm512_maddubs_epi16((__m512i)codes, (__m512i)x));
}
OCTAVO_INLINE vi total_of_nibbles(vi sums) {
    return (vi)_mm512_madd_epi16((__m512i)sums, _mm512_set1_epi16(1));
}

}  // namespace
