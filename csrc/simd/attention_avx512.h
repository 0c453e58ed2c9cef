// What attention on tiles (kernels/attention_tiles.h) does to vectors of 16, by AVX-512 and its conversion to bfloat16.
#pragma once

#include <immintrin.h>

#include "simd/vec.h"

namespace {

// x - floor(x), rounded down; 0 for an infinity.
OCTAVO_INLINE vf fraction(vf x) { return (vf)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }

// p * 2^floor(x), rounded once; 0 where x is below -126. (A denormal result takes the processor some 170 cycles.)
OCTAVO_INLINE vf times_power(vf p, vf x) {
    const __mmask16 counts = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
    return (vf)_mm512_maskz_scalef_ps(counts, (__m512)p, (__m512)x);
}

OCTAVO_INLINE bool are_ones(vf x) {
    return _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(1.0f), _CMP_NEQ_UQ) == 0;
}

// Lane i: the largest number of row i, of [16][16]. A row with a NaN among them has any of its numbers.
OCTAVO_INLINE vf max_of_rows(const float* rows) {
    __m512 halves[8], quarters[4], eighths[2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        const __m512 a = _mm512_load_ps(rows + i * 16), b = _mm512_load_ps(rows + (i + 8) * 16);
        halves[i] = _mm512_max_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const __m512 a = halves[i], b = halves[i + 4];
        quarters[i] = _mm512_max_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    // Now 128 bits are one row's each: i, i + 8, i + 4, i + 12.
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        const __m512d a = (__m512d)quarters[i], b = (__m512d)quarters[i + 2];
        eighths[i] = _mm512_max_ps((__m512)_mm512_unpacklo_pd(a, b), (__m512)_mm512_unpackhi_pd(a, b));
    }
    const __m512 a = eighths[0], b = eighths[1];
    const __m512 all = _mm512_max_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
    const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
    return (vf)_mm512_permutexvar_ps(order, all);
}

// 32 numbers to bfloat16, side by side; to the nearest, ties to even, denormal numbers to 0.
OCTAVO_INLINE void store_rounded(std::uint16_t* to, vf low, vf high) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
}

// Pairs of two rows' words of the same number: of numbers 8 * q + (0, 1, 2, 3) of 32 to `low`, of the others to `high`.
OCTAVO_INLINE void interleave(const std::uint16_t* x, const std::uint16_t* y, std::uint16_t* low, std::uint16_t* high) {
    const __m512i a = _mm512_loadu_si512(x), b = _mm512_loadu_si512(y);
    _mm512_storeu_si512(low, _mm512_unpacklo_epi16(a, b));
    _mm512_storeu_si512(high, _mm512_unpackhi_epi16(a, b));
}

// Numbers that lie as `interleave` left them, in order.
OCTAVO_INLINE void restore_order(vf low, vf high, float* to) {
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    _mm512_storeu_ps(to, _mm512_permutex2var_ps((__m512)low, first, (__m512)high));
    _mm512_storeu_ps(to + 16, _mm512_permutex2var_ps((__m512)low, second, (__m512)high));
}

}  // namespace
