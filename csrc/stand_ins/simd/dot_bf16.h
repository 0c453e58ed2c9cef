// A stand-in for AVX-512's dot product of bfloat16 pairs: two fused products, which round otherwise.
#pragma once

#include "simd/vec.h"

namespace {

OCTAVO_INLINE vf dot_pairs(vf sums, std::uint32_t x, vu w) {
    return fma(splat(widen(static_cast<std::uint16_t>(x >> 16))), upper(w),
               fma(splat(widen(static_cast<std::uint16_t>(x))), lower(w), sums));
}

}  // namespace
