// Vectors of W floats or integers over the compiler's own vector extension, and the plain form of every operation that
// an instruction set may have an instruction for.
//
// Included by the one file of the chosen instruction set (portable.h, avx2.h, ...) after it has said W. That file takes
// over from `generic` what it has no better way for. Its own are always: W, the sizes of tiles (kMaxRows, tile_vectors,
// kCodeRows; see tile.h and dot.h), and what rounds as the machine does (fma, fma1, accumulate).
//
// All of simd/ is compiled once for each instruction set, inside whose anonymous namespace it lives: nothing here may
// be merged with another instruction set's copy by the linker. No standard templates for the same reason.
#pragma once

#include <cstdint>
#include <cstring>

#define OCTAVO_INLINE inline __attribute__((always_inline))

namespace {

typedef float vf __attribute__((vector_size(4 * W)));
typedef std::int32_t vi __attribute__((vector_size(4 * W)));
typedef std::uint32_t vu __attribute__((vector_size(4 * W)));
typedef std::uint16_t vh __attribute__((vector_size(2 * W)));

template <class V>
OCTAVO_INLINE V load_as(const void* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

OCTAVO_INLINE vf load(const float* from) { return load_as<vf>(from); }
OCTAVO_INLINE void store(float* to, vf v) { std::memcpy(to, &v, sizeof v); }

OCTAVO_INLINE vu splat_word(std::uint32_t x) {
    vu v;
    for (int i = 0; i < W; ++i) v[i] = x;
    return v;
}

namespace generic {

OCTAVO_INLINE vf splat(float x) {
    vf v;
    for (int i = 0; i < W; ++i) v[i] = x;
    return v;
}

OCTAVO_INLINE vi splat_int(std::int32_t x) { return (vi)splat_word(static_cast<std::uint32_t>(x)); }

// The larger of each pair; b where one is NaN.
OCTAVO_INLINE vf max(vf a, vf b) { return a > b ? a : b; }

// 32-bit words that hold two bfloat16 each: the float32 of the upper.
OCTAVO_INLINE vf upper(vu pair) { return (vf)(pair & 0xffff0000u); }

// W bfloat16 that lie side by side.
OCTAVO_INLINE vf load(const std::uint16_t* from) {
    return (vf)(__builtin_convertvector(load_as<vh>(from), vu) << 16);
}

// W signed bytes that lie side by side.
OCTAVO_INLINE vf load(const std::int8_t* from) {
    typedef std::int8_t vb __attribute__((vector_size(W)));
    return __builtin_convertvector(load_as<vb>(from), vf);
}

// W float16 that lie side by side, none of them an infinity or NaN.
OCTAVO_INLINE vf load_half(const std::uint16_t* from) {
    // Exponent and mantissa where float32 has them; the difference of the biases is a factor of 2^112, exact also for
    // subnormal numbers.
    const vu words = __builtin_convertvector(load_as<vh>(from), vu);
    const vf magnitude = (vf)((words & 0x7fffu) << 13) * 0x1p112f;
    return (vf)((vu)magnitude | (words & 0x8000u) << 16);
}

// W integers from -128 to 127 as bytes.
OCTAVO_INLINE void store_bytes(std::int8_t* to, vi codes) {
    typedef std::int8_t bytes __attribute__((vector_size(W)));
    const bytes narrow = __builtin_convertvector(codes, bytes);
    std::memcpy(to, &narrow, sizeof narrow);
}

// Bit i is lane i of a comparison.
OCTAVO_INLINE std::uint32_t bits_of(vi mask) {
    std::uint64_t words[W / 2], any = 0;
    std::memcpy(words, &mask, sizeof mask);
    for (int i = 0; i < W / 2; ++i) any |= words[i];
    std::uint32_t bits = 0;
    if (any != 0)
        for (int i = 0; i < W; ++i) bits |= static_cast<std::uint32_t>(mask[i] & 1) << i;
    return bits;
}

// Hides from the compiler what it knows about x and y.
OCTAVO_INLINE void forget(vf& x, vf& y) { __asm__ volatile("" : "+m"(x), "+m"(y)); }

}  // namespace generic

}  // namespace
