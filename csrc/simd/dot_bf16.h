// The dot product of bfloat16 pairs by AVX-512's instruction (BF16).
#pragma once

#include <immintrin.h>

#include "simd/vec.h"

namespace {

// sums + both products of each lane's pair with the pair x.
OCTAVO_INLINE vf dot_pairs(vf sums, std::uint32_t x, vu w) {
    return (vf)_mm512_dpbf16_ps((__m512)sums, (__m512bh)_mm512_set1_epi32(static_cast<int>(x)), (__m512bh)w);
}

}  // namespace
