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

}  // namespace
