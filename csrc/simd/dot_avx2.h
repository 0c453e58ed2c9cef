// Integer dot products (dot.h) by AVX2, on vectors of one register or of two (the stand-in for AVX-512).
//
// Sums are added by hand: left alone, gcc 12 computes many products first, sends them to memory and adds them up as a
// tree.
#pragma once

#include <immintrin.h>

#include "simd/dot.h"
#include "simd/lifted.h"

namespace {

constexpr int kBias = 0;

OCTAVO_INLINE Bytes prepare(vi codes) {
    return {codes,
            lifted<__m256i>(codes, codes, codes, [](__m256i w, __m256i, __m256i) { return _mm256_abs_epi8(w); })};
}

// Magnitudes times bytes that have taken over the sign: two such products fit 16 bits, for 2 * 128 * 127 < 2^15.
OCTAVO_INLINE void add_signed(__m256i& sums, __m256i magnitudes, __m256i codes, __m256i x) {
    __m256i products;
    __asm__ volatile("vpsignb %3, %4, %1\n\tvpmaddubsw %1, %2, %1\n\tvpmaddwd %5, %1, %1\n\tvpaddd %1, %0, %0"
                     : "+x"(sums), "=&x"(products)
                     : "x"(magnitudes), "x"(codes), "x"(x), "x"(_mm256_set1_epi16(1)));
}
OCTAVO_INLINE void add_bytes(vi& sums, const Bytes& w, vi x) {
    auto* s = reinterpret_cast<__m256i*>(&sums);
    const auto *magnitudes = reinterpret_cast<const __m256i*>(&w.magnitudes),
               *codes = reinterpret_cast<const __m256i*>(&w.codes), *values = reinterpret_cast<const __m256i*>(&x);
    for (int i = 0; i < W / 8; ++i) add_signed(s[i], magnitudes[i], codes[i], values[i]);
}

// Sums of up to 16 products each, in 16 bits: 16 * 15 * 127 < 2^15.
OCTAVO_INLINE void add_unsigned(__m256i& sums, __m256i codes, __m256i x) {
    __m256i products;
    __asm__ volatile("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
                     : "+x"(sums), "=&x"(products) : "x"(codes), "x"(x));
}
OCTAVO_INLINE void add_nibbles(vi& sums, vi codes, vi x) {
    auto* s = reinterpret_cast<__m256i*>(&sums);
    const auto *w = reinterpret_cast<const __m256i*>(&codes), *values = reinterpret_cast<const __m256i*>(&x);
    for (int i = 0; i < W / 8; ++i) add_unsigned(s[i], w[i], values[i]);
}
OCTAVO_INLINE vi total_of_nibbles(vi sums) {
    return lifted<__m256i>(sums, sums, sums,
                           [](__m256i s, __m256i, __m256i) { return _mm256_madd_epi16(s, _mm256_set1_epi16(1)); });
}

}  // namespace
