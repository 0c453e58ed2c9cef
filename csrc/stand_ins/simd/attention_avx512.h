// A stand-in for what attention on tiles does to vectors, in loops over lanes. See simd/attention_avx512.h.
#pragma once

#include "simd/vec.h"

namespace {

OCTAVO_INLINE float fraction1(float x) {
    if (__builtin_isnan(x) || __builtin_isinf(x)) return __builtin_isnan(x) ? x : 0.0f;
    // Exact in double, but where it is all but 1.
    const double exact = x - __builtin_floor(x);
    const auto nearest = static_cast<float>(exact);
    if (nearest == 1.0f) return 0x1.fffffep-1f;
    return nearest > exact ? __builtin_nextafterf(nearest, 0.0f) : nearest;
}

OCTAVO_INLINE vf fraction(vf x) {
    for (int i = 0; i < W; ++i) x[i] = fraction1(x[i]);
    return x;
}

OCTAVO_INLINE vf times_power(vf p, vf x) {
    for (int i = 0; i < W; ++i) {
        const float whole = __builtin_floorf(x[i]);
        const int power = whole > 300.0f ? 300 : whole < -300.0f ? -300 : static_cast<int>(whole);
        p[i] = __builtin_isnan(x[i]) ? x[i] : x[i] < -126.0f ? 0.0f : __builtin_scalbnf(p[i], power);
    }
    return p;
}

OCTAVO_INLINE bool are_ones(vf x) {
    for (int i = 0; i < W; ++i)
        if (x[i] != 1.0f) return false;
    return true;
}

OCTAVO_INLINE vf max_of_rows(const float* rows) {
    vf largest;
    for (int i = 0; i < W; ++i) largest[i] = max_lane(load(rows + i * W));
    return largest;
}

OCTAVO_INLINE std::uint16_t rounded(float x) {
    const bool is_denormal = __builtin_fabsf(x) < 0x1p-126f;
    return round_to_bf16(is_denormal ? __builtin_copysignf(0.0f, x) : x);
}

OCTAVO_INLINE void store_rounded(std::uint16_t* to, vf low, vf high) {
    for (int i = 0; i < W; ++i) to[i] = rounded(low[i]), to[W + i] = rounded(high[i]);
}

OCTAVO_INLINE void interleave(const std::uint16_t* x, const std::uint16_t* y, std::uint16_t* low, std::uint16_t* high) {
    for (int i = 0; i < 32; ++i) {
        std::uint16_t* to = (i / 4 % 2 == 0 ? low : high) + (i / 8 * 4 + i % 4) * 2;
        to[0] = x[i], to[1] = y[i];
    }
}

OCTAVO_INLINE void restore_order(vf low, vf high, float* to) {
    for (int i = 0; i < 32; ++i) to[i] = (i / 4 % 2 == 0 ? low : high)[i / 8 * 4 + i % 4];
}

}  // namespace
