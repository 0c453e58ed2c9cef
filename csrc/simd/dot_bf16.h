// Rounding to bfloat16 and the dot product of its pairs by AVX-512's instructions (BF16).
#pragma once

#include <immintrin.h>

#include "simd/vec.h"

namespace {

// sums + both products of each lane's pair with the pair x.
OCTAVO_INLINE vf dot_pairs(vf sums, std::uint32_t x, vu w) {
    return (vf)_mm512_dpbf16_ps((__m512)sums, (__m512bh)_mm512_set1_epi32(static_cast<int>(x)), (__m512bh)w);
}

// Two vectors, rounded to the nearest; denormals become 0, as which the dot products take them.
OCTAVO_INLINE void store_bf16(std::uint16_t* to, vf low, vf high) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
}

// Words that hold two bfloat16 each, of two vectors rounded like that: the first in the lower half.
struct RoundedPairs {
    static OCTAVO_INLINE vu of(vf even, vf odd) {
        const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
        alignas(64) static constexpr std::uint16_t kTurns[32] = {
            0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
            8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31,
        };
        return (vu)_mm512_permutexvar_epi16(_mm512_load_si512(kTurns), halves);
    }
};

}  // namespace
