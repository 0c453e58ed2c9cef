// Any processor: what the compiler makes of the plain forms, in registers of whatever width. The only file of simd/
// that asks the compiler what it compiles for.
#pragma once

namespace {

constexpr int W = 8;  // floats of a vector

#if defined(__FP_FAST_FMAF)
constexpr bool kFuses = true;
#else
constexpr bool kFuses = false;  // a fused multiply-add would be a call of the C library
#endif

#if defined(__aarch64__)
constexpr int kMaxRows = 6;  // of a tile of floats: its sums stay in registers
#else
constexpr int kMaxRows = 4;
#endif

constexpr int tile_vectors(int rows) { return rows <= 2 ? 2 : 1; }

constexpr int kCodeRows = 4;  // of a tile of integer sums

}  // namespace

#include "simd/generic.h"

namespace {

using namespace generic;

// a * b + c, rounded once where the machine has the instruction; always the same way on one machine.
OCTAVO_INLINE float fma1(float a, float b, float c) {
    if constexpr (kFuses) return __builtin_fmaf(a, b, c);
    return a * b + c;
}

OCTAVO_INLINE vf fma(vf a, vf b, vf c) {
    if constexpr (!kFuses) return a * b + c;
    for (int i = 0; i < W; ++i) c[i] = fma1(a[i], b[i], c[i]);
    return c;
}

OCTAVO_INLINE void accumulate(vf& sum, vf x, vf y) { sum = fma(x, y, sum); }

}  // namespace
