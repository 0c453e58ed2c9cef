// A stand-in for AVX-512's dot product of bfloat16 pairs, bit for bit, and the steps that such instructions consist of:
// fused products and sums that take denormals for zeros and give zeros for them.
#pragma once

#include <immintrin.h>

#include "simd/vec.h"

namespace {

// While one is alive, fma_flushed and add_flushed take and give no denormals. Only in functions that are never inlined
// and have no other arithmetic: the compiler, which does not know of it, would move that under it.
class FlushDenormals {
public:
    FlushDenormals() {
        __asm__ volatile("vstmxcsr %0" : "=m"(before));
        const std::uint32_t flushing = before | 0x8040u;  // denormals are zeros, and become zeros
        __asm__ volatile("vldmxcsr %0" : : "m"(flushing));
    }
    ~FlushDenormals() { __asm__ volatile("vldmxcsr %0" : : "m"(before)); }
    FlushDenormals(const FlushDenormals&) = delete;
    FlushDenormals& operator=(const FlushDenormals&) = delete;

private:
    std::uint32_t before;
};

struct TwoRegisters { __m256 low, high; };

OCTAVO_INLINE TwoRegisters registers_of(vf x) {
    TwoRegisters registers;
    std::memcpy(&registers, &x, sizeof x);
    return registers;
}

OCTAVO_INLINE vf vector_of(const TwoRegisters& registers) { return load_as<vf>(&registers); }

// a * b + c. Volatile, so that it stays behind FlushDenormals.
OCTAVO_INLINE vf fma_flushed(vf a, vf b, vf c) {
    TwoRegisters x = registers_of(a), y = registers_of(b), z = registers_of(c);
    __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(z.low) : "x"(x.low), "x"(y.low));
    __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(z.high) : "x"(x.high), "x"(y.high));
    return vector_of(z);
}

OCTAVO_INLINE vf add_flushed(vf a, vf b) {
    TwoRegisters x = registers_of(a), y = registers_of(b);
    __asm__ volatile("vaddps %1, %0, %0" : "+x"(x.low) : "x"(y.low));
    __asm__ volatile("vaddps %1, %0, %0" : "+x"(x.high) : "x"(y.high));
    return vector_of(x);
}

// A denormal as the zero of its sign, as these instructions take it.
OCTAVO_INLINE float flushed(float x) { return x < 0x1p-126f && x > -0x1p-126f ? __builtin_copysignf(0.0f, x) : x; }

inline __attribute__((noinline)) void add_pairs(vf& sums, std::uint32_t x, const vu& w) {
    const FlushDenormals flush;
    sums = fma_flushed(splat(widen(static_cast<std::uint16_t>(x >> 16))), upper(w), sums);
    sums = fma_flushed(splat(widen(static_cast<std::uint16_t>(x))), lower(w), sums);
}

// The product of the upper halves is added first.
OCTAVO_INLINE vf dot_pairs(vf sums, std::uint32_t x, vu w) {
    add_pairs(sums, x, w);
    return sums;
}

OCTAVO_INLINE void store_bf16(std::uint16_t* to, vf low, vf high) {
    for (int i = 0; i < W; ++i) to[i] = round_to_bf16(low[i]), to[W + i] = round_to_bf16(high[i]);
}

struct RoundedPairs {
    static OCTAVO_INLINE vu of(vf even, vf odd) {
        vu words;
        for (int i = 0; i < W; ++i)
            words[i] = round_to_bf16(even[i]) | static_cast<std::uint32_t>(round_to_bf16(odd[i])) << 16;
        return words;
    }
};

}  // namespace
