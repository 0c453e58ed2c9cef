// What is done to vectors on every instruction set, made of the operations that the chosen one has.
//
// A file of isa/ includes its instruction set's file (portable.h, avx2.h, ...) before anything that includes this one;
// generic.h says what that file has. Products and sums are fused exactly where `fma` is written (-ffp-contract=off
// elsewhere), so that two kernels with the same order of operations give the same bits.
#pragma once

#include "simd/generic.h"

namespace {

OCTAVO_INLINE vf select(vi mask, vf yes, vf no) { return mask ? yes : no; }

typedef float vf4 __attribute__((vector_size(16)));
typedef std::int32_t vi4 __attribute__((vector_size(16)));

template <class V4, class V, class F>
OCTAVO_INLINE auto fold_parts(V v, F f) {
    V4 parts[W / 4];
    std::memcpy(parts, &v, sizeof v);
    for (int width = W / 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) parts[i] = f(parts[i], parts[i + width]);
    V4 low = parts[0];
    low = f(low, __builtin_shufflevector(low, low, 2, 3, 2, 3));
    low = f(low, __builtin_shufflevector(low, low, 1, 1, 1, 1));
    return low[0];
}

template <class F>
OCTAVO_INLINE float fold(vf v, F f) { return fold_parts<vf4>(v, f); }
template <class F>
OCTAVO_INLINE std::int32_t fold(vi v, F f) { return fold_parts<vi4>(v, f); }

// All lanes, always in the same tree: halves onto each other.
OCTAVO_INLINE float sum(vf v) {
    return fold(v, [](vf4 a, vf4 b) { return a + b; });
}

OCTAVO_INLINE float max_lane(vf v) {
    return fold(v, [](vf4 a, vf4 b) { return a > b ? a : b; });
}

OCTAVO_INLINE vi lane_numbers() {
    vi v;
    for (int i = 0; i < W; ++i) v[i] = i;
    return v;
}

// 32-bit words that hold two bfloat16 each: the float32 of the lower; `upper` is the instruction set's own.
OCTAVO_INLINE vf lower(vu pair) { return (vf)(pair << 16); }

OCTAVO_INLINE float widen(std::uint16_t word) {
    const std::uint32_t bits = std::uint32_t{word} << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

OCTAVO_INLINE float widen(float x) { return x; }

// To the nearest bfloat16, ties to even; a NaN stays one.
OCTAVO_INLINE std::uint16_t round_to_bf16(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
    return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// W of them side by side.
OCTAVO_INLINE vh halves_of(vf x) {
    const vu bits = (vu)x, rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    const vi is_nan = (vi)((bits & 0x7fffffffu) > 0x7f800000u);
    return __builtin_convertvector((is_nan ? (bits | 0x400000u) : rounded) >> 16, vh);
}

// e^x to 2 units in the last place (Cephes' expf: range reduction by ln 2 in two parts, a polynomial of degree 7).
// Exactly 1 at 0; 0 below -87.3, e^88 above 88, NaN for NaN.
OCTAVO_INLINE vf exp(vf x) {
    const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const vf clamped = max(splat(-88.0f), select(x > 88.0f, splat(88.0f), x));
    const vf shifted = fma(clamped, splat(1.44269504088896341f), magic);
    const vf n = shifted - magic;
    vf r = fma(n, splat(-0.693359375f), clamped);
    r = fma(n, splat(2.12194440e-4f), r);
    vf p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    const vf y = fma(p, r * r, r) + 1.0f;
    const vu scale = ((vu)shifted << 23) + 0x3f800000u;  // the low bits of `shifted` are n
    return select(x < -87.3f, splat(0.0f), y * (vf)scale);
}

// 2^x to 1.5 units in the last place. Exactly 1 at 0; 0 below -126, 2^126 above 126, NaN for NaN.
OCTAVO_INLINE vf exp2(vf x) {
    const vf magic = splat(12582912.0f);  // as above
    const vf clamped = max(splat(-126.0f), select(x > 126.0f, splat(126.0f), x));
    const vf shifted = clamped + magic;
    const vf r = clamped - (shifted - magic);  // -0.5 to 0.5, exactly
    // Minimax in the relative error (2e-9), with 1 at 0.
    vf p = splat(0.00015353362237f);
    p = fma(p, r, splat(0.0013398874743f));
    p = fma(p, r, splat(0.0096184373591f));
    p = fma(p, r, splat(0.055503324703f));
    p = fma(p, r, splat(0.24022647914f));
    p = fma(p, r, splat(0.69314720286f));
    p = fma(p, r, splat(1.0f));
    const vu scale = ((vu)shifted << 23) + 0x3f800000u;  // the low bits of `shifted` are the integer
    return select(x < -126.0f, splat(0.0f), p * (vf)scale);
}

}  // namespace
