// A stand-in for AVX-512: 16 lanes as two halves of AVX2.
#pragma once

#include <immintrin.h>

namespace {

constexpr int W = 16;  // these four as in simd/avx512.h

constexpr int kMaxRows = 12;
constexpr int tile_vectors(int rows) { return rows <= 6 ? 4 : 2; }

constexpr int kCodeRows = 8;

}  // namespace

#include "simd/generic.h"

namespace {

using namespace generic;

// a * b + c, rounded once.
OCTAVO_INLINE vf fma(vf a, vf b, vf c) {
    struct Halves { __m256 low, high; } x, y, z;
    std::memcpy(&x, &a, sizeof a), std::memcpy(&y, &b, sizeof b), std::memcpy(&z, &c, sizeof c);
    z.low = _mm256_fmadd_ps(x.low, y.low, z.low);
    z.high = _mm256_fmadd_ps(x.high, y.high, z.high);
    std::memcpy(&c, &z, sizeof c);
    return c;
}

OCTAVO_INLINE float fma1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
OCTAVO_INLINE void accumulate(vf& sum, vf x, vf y) { sum = fma(x, y, sum); }

}  // namespace
