// A stand-in for the dot products of VNNI, by AVX2: on vectors of one register or of two.
#pragma once

#include <immintrin.h>

#include "simd/lifted.h"

namespace {

OCTAVO_INLINE vi plus_unsigned(vi sums, vi codes, vi x) {
    return lifted<__m256i>(sums, codes, x, [](__m256i s, __m256i w, __m256i a) {
        const __m256i even = _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(255)),
                                               _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8));
        const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(w, 8), _mm256_srai_epi16(a, 8));
        return _mm256_add_epi32(s, _mm256_add_epi32(even, odd));
    });
}

}  // namespace

#include "simd/dot_unsigned.h"
