// AVX2 with FMA and F16C: 8 floats a register, of which there are 16.
#pragma once

#include <immintrin.h>

namespace {

constexpr int W = 8;  // floats of a vector

constexpr int kMaxRows = 6;  // of a tile of floats: its sums stay in registers
constexpr int tile_vectors(int rows) { return rows <= 3 ? 4 : 2; }

constexpr int kCodeRows = 4;  // of a tile of integer sums

}  // namespace

#include "simd/generic.h"

namespace {

OCTAVO_INLINE vf splat(float x) { return (vf)_mm256_set1_ps(x); }
OCTAVO_INLINE vi splat_int(std::int32_t x) { return (vi)_mm256_set1_epi32(x); }

// a * b + c, rounded once.
OCTAVO_INLINE vf fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
OCTAVO_INLINE float fma1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

// sum += x * y. By hand: registers are scarce, and left alone, gcc 12 moves loads ahead and sums about, until one of
// them must go to memory and back in every round.
OCTAVO_INLINE void accumulate(vf& sum, vf x, vf y) {
    __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(x), "x"(y));
}

OCTAVO_INLINE vf max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }

// Two shifts: a mask would take a register from the sums of a tile, and gcc must not see that it is one.
OCTAVO_INLINE vf upper(vu pair) {
    vu high;
    __asm__("vpsrld $16, %1, %0" : "=x"(high) : "x"(pair));
    return (vf)(high << 16);
}

OCTAVO_INLINE vf load(const std::uint16_t* from) {
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16);
}

OCTAVO_INLINE vf load(const std::int8_t* from) {
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
}

OCTAVO_INLINE vf load_half(const std::uint16_t* from) {
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
}

OCTAVO_INLINE void store_bytes(std::int8_t* to, vi codes) {
    const __m256i words = _mm256_packs_epi32((__m256i)codes, (__m256i)codes);
    const __m128i low = _mm256_castsi256_si128(words), high = _mm256_extracti128_si256(words, 1);
    _mm_storel_epi64((__m128i*)to, _mm_packs_epi16(_mm_unpacklo_epi64(low, high), low));
}

OCTAVO_INLINE std::uint32_t bits_of(vi mask) {
    return static_cast<std::uint32_t>(_mm256_movemask_ps((__m256)mask));
}

OCTAVO_INLINE void forget(vf& x, vf& y) { __asm__ volatile("" : "+x"(x), "+x"(y)); }

}  // namespace
