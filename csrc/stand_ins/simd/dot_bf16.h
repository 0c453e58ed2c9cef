// A stand-in for AVX-512's dot product of bfloat16 pairs: two fused products, which round otherwise.
#pragma once

#include "simd/vec.h"

namespace {

OCTAVO_INLINE vf dot_pairs(vf sums, std::uint32_t x, vu w) {
    return fma(splat(widen(static_cast<std::uint16_t>(x >> 16))), upper(w),
               fma(splat(widen(static_cast<std::uint16_t>(x))), lower(w), sums));
}

OCTAVO_INLINE void store_bf16(std::uint16_t* to, vf low, vf high) {
    for (int i = 0; i < W; ++i) to[i] = round_to_bf16(low[i]), to[W + i] = round_to_bf16(high[i]);
}

}  // namespace
