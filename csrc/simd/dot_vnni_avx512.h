// Integer dot products (dot.h) by the instructions of VNNI in their form for AVX-512.
#pragma once

#include <immintrin.h>

#include "simd/vec.h"

namespace {

OCTAVO_INLINE vi plus_unsigned(vi sums, vi codes, vi x) {
    return (vi)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)codes, (__m512i)x);
}

}  // namespace

#include "simd/dot_unsigned.h"
