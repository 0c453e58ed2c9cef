// AVX-512 (F, BW, DQ, VL): 16 floats a register, of which there are 32.
#pragma once

#include <immintrin.h>

namespace {

constexpr int W = 16;  // floats of a vector

constexpr int kMaxRows = 12;  // of a tile of floats: its sums stay in registers
constexpr int tile_vectors(int rows) { return rows <= 6 ? 4 : 2; }

constexpr int kCodeRows = 8;  // of a tile of integer sums

}  // namespace

#include "simd/generic.h"

namespace {

using generic::upper;

OCTAVO_INLINE vf splat(float x) { return (vf)_mm512_set1_ps(x); }
OCTAVO_INLINE vi splat_int(std::int32_t x) { return (vi)_mm512_set1_epi32(x); }

// a * b + c, rounded once.
OCTAVO_INLINE vf fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
OCTAVO_INLINE float fma1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
OCTAVO_INLINE void accumulate(vf& sum, vf x, vf y) { sum = fma(x, y, sum); }

OCTAVO_INLINE vf max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }

OCTAVO_INLINE vf load(const std::uint16_t* from) {
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
}

OCTAVO_INLINE vf load(const std::int8_t* from) {
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
}

OCTAVO_INLINE vf load_half(const std::uint16_t* from) {
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
}

OCTAVO_INLINE void store_bytes(std::int8_t* to, vi codes) {
    _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)codes));
}

OCTAVO_INLINE std::uint32_t bits_of(vi mask) { return _mm512_movepi32_mask((__m512i)mask); }

OCTAVO_INLINE void forget(vf& x, vf& y) { __asm__ volatile("" : "+x"(x), "+x"(y)); }

}  // namespace
