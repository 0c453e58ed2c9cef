// Integer dot products: in every 32-bit lane, four bytes of a matrix times four of a row, added to the lane's sum.
//
// All of them are exact, whatever the instructions, so every ISA variant has the same sums. Bytes of a row lie in
// -127..127.
#pragma once

#include "simd/vec.h"

namespace {

#if defined(__AVX512F__) && defined(OCTAVO_WIDE)
typedef __m512i Register;
#elif defined(__AVX2__)
typedef __m256i Register;
#else
typedef vi Register;
#endif

// f(a, b, c) on whole vectors, in halves where a register holds but half of one.
//
// Where registers are scarce the functions below add by hand: left alone, gcc 12 computes many products first, sends
// them to memory and adds them up as a tree.
template <class F>
OCTAVO_INLINE vi lifted(vi a, vi b, vi c, F f) {
    if constexpr (sizeof(vi) == sizeof(Register)) {
        return (vi)f((Register)a, (Register)b, (Register)c);
    } else {
        Register x[2], y[2], z[2];
        std::memcpy(x, &a, sizeof a), std::memcpy(y, &b, sizeof b), std::memcpy(z, &c, sizeof c);
        x[0] = f(x[0], y[0], z[0]), x[1] = f(x[1], y[1], z[1]);
        std::memcpy(&a, x, sizeof a);
        return a;
    }
}

OCTAVO_INLINE vi splat_int(std::int32_t x) {
#if defined(__AVX512F__) && defined(OCTAVO_WIDE)
    return (vi)_mm512_set1_epi32(x);
#elif defined(__AVX2__) && !defined(OCTAVO_WIDE)
    return (vi)_mm256_set1_epi32(x);
#else
    return (vi)splat_word(static_cast<std::uint32_t>(x));
#endif
}

// A row's next four bytes in every lane.
OCTAVO_INLINE vi splat_bytes(const std::int8_t* from) {
    std::int32_t word;
    std::memcpy(&word, from, sizeof word);
    return splat_int(word);
}

// The weights' four bytes of each lane, made ready for many rows.
struct Bytes {
    vi codes, magnitudes;
};

#if defined(OCTAVO_VNNI)

// The instruction multiplies unsigned bytes with signed ones: signed weights go in with 128 added, and their sums come
// out with kBias times the sum of the row's bytes too much.
constexpr int kBias = 128;

OCTAVO_INLINE Bytes prepare(vi codes) { return {codes ^ (vi)splat_word(0x80808080u), codes}; }

OCTAVO_INLINE vi plus_unsigned(vi sums, vi codes, vi x) {
    return lifted(sums, codes, x, [](Register s, Register w, Register a) {
#if defined(__AVX512VNNI__) && defined(OCTAVO_WIDE)
        return _mm512_dpbusd_epi32(s, w, a);
#elif defined(__AVXVNNI__) && !defined(OCTAVO_WIDE)
        return _mm256_dpbusd_avx_epi32(s, w, a);
#else  // a stand-in, so that the code around it can be tested anywhere
        const __m256i even = _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(255)),
                                               _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8));
        const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(w, 8), _mm256_srai_epi16(a, 8));
        return _mm256_add_epi32(s, _mm256_add_epi32(even, odd));
#endif
    });
}

OCTAVO_INLINE void add_bytes(vi& sums, const Bytes& w, vi x) { sums = plus_unsigned(sums, w.codes, x); }
OCTAVO_INLINE void add_nibbles(vi& sums, vi codes, vi x) { sums = plus_unsigned(sums, codes, x); }
OCTAVO_INLINE vi total_of_nibbles(vi sums) { return sums; }

#elif defined(__AVX512F__) && defined(OCTAVO_WIDE)

constexpr int kBias = 0;

OCTAVO_INLINE Bytes prepare(vi codes) { return {codes, (vi)_mm512_abs_epi8((__m512i)codes)}; }

// Magnitudes times bytes that have taken over the sign: two such products fit 16 bits, for 2 * 128 * 127 < 2^15.
OCTAVO_INLINE void add_bytes(vi& sums, const Bytes& w, vi x) {
    const __m512i minus = _mm512_sub_epi8(_mm512_setzero_si512(), (__m512i)x);
    const __m512i turned = _mm512_mask_mov_epi8((__m512i)x, _mm512_movepi8_mask((__m512i)w.codes), minus);
    const __m512i pairs = _mm512_maddubs_epi16((__m512i)w.magnitudes, turned);
    sums = (vi)_mm512_add_epi32((__m512i)sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}

// Sums of up to 16 products each, in 16 bits: 16 * 15 * 127 < 2^15.
OCTAVO_INLINE void add_nibbles(vi& sums, vi codes, vi x) {
    sums = (vi)_mm512_add_epi16((__m512i)sums, _mm512_maddubs_epi16((__m512i)codes, (__m512i)x));
}
OCTAVO_INLINE vi total_of_nibbles(vi sums) {
    return (vi)_mm512_madd_epi16((__m512i)sums, _mm512_set1_epi16(1));
}

#elif defined(__AVX2__)

constexpr int kBias = 0;

OCTAVO_INLINE Bytes prepare(vi codes) {
    return {codes, lifted(codes, codes, codes, [](__m256i w, __m256i, __m256i) { return _mm256_abs_epi8(w); })};
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
    return lifted(sums, sums, sums,
                  [](__m256i s, __m256i, __m256i) { return _mm256_madd_epi16(s, _mm256_set1_epi16(1)); });
}

#else

constexpr int kBias = 0;

OCTAVO_INLINE Bytes prepare(vi codes) { return {codes, codes}; }

OCTAVO_INLINE vi byte_of(vi words, int i) { return (vi)((vu)words << (24 - 8 * i)) >> 24; }

OCTAVO_INLINE void add_bytes(vi& sums, const Bytes& w, vi x) {
    for (int i = 0; i < 4; ++i) sums += byte_of(w.codes, i) * byte_of(x, i);
}
OCTAVO_INLINE void add_nibbles(vi& sums, vi codes, vi x) { add_bytes(sums, {codes, codes}, x); }
OCTAVO_INLINE vi total_of_nibbles(vi sums) { return sums; }

#endif

}  // namespace
