// Integer dot products (dot.h) by the instructions of VNNI in their form for AVX2 (AVX-VNNI).
#pragma once

#include <immintrin.h>

#include "simd/vec.h"

namespace {

OCTAVO_INLINE vi plus_unsigned(vi sums, vi codes, vi x) {
    return (vi)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)codes, (__m256i)x);
}

}  // namespace

#include "simd/dot_unsigned.h"
