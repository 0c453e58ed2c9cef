// What one block of each stored format means: plain floats, and the quantized block formats of GGML: integer codes with
// scales.
//
// Each format is what `ggml-quants.c` and `ggml-common.h` (github.com/ggml-org/ggml) define, and the result is bit for
// bit that of the `gguf` package: the same products and sums in the same order, each rounded to float32 (so: no fused
// multiply-add, no -ffast-math). `unpack` reads `num_bytes` bytes and writes `num_values` floats. A block format cuts a
// row into blocks of 32 values, or super-blocks of 256, which share float16 scales:
//
//     Q4_0, Q5_0   (q - half range) * d         32 values, q in 4 or 5 bits
//     Q4_1, Q5_1   q * d + m                    32 values
//     Q8_0         q * d                        32 values, q int8
//     Q4_K, Q5_K   q * (d * s) - dmin * t       256 values in 8 groups, s and t in 6 bits
//     Q6_K         (q - 32) * (d * s)           256 values in 16 groups, s int8
//
// `split` takes such a block apart into a Block, from which all values follow.

#pragma once

#include "kernels/format_traits.h"
#include "weights/floats.h"

namespace octavo {

using Byte = std::uint8_t;

inline float half_at(const Byte* bytes) { return from_half(load<std::uint16_t>(bytes)); }

struct F32 {
    static constexpr const char* name = "F32";
    static constexpr int num_values = 1, num_bytes = 4;
    static constexpr bool is_quantized = false;
    static void unpack(const Byte* __restrict block, float* __restrict values) { *values = load<float>(block); }
};

struct F16 {
    static constexpr const char* name = "F16";
    static constexpr int num_values = 1, num_bytes = 2;
    static constexpr bool is_quantized = false;
    static void unpack(const Byte* __restrict block, float* __restrict values) { *values = half_at(block); }
};

struct BF16 {
    static constexpr const char* name = "BF16";
    static constexpr int num_values = 1, num_bytes = 2;
    static constexpr bool is_quantized = false;
    static void unpack(const Byte* __restrict block, float* __restrict values) { *values = from_bf16(load<std::uint16_t>(block)); }
};

// A block's codes, already shifted to where they count from zero, and what they are multiplied with: a value is
// code * (d * sub_scale) - m * sub_min where there are sub-scales, else code * d + m.
template <int num_values, int num_groups>
struct Block {
    std::uint16_t d = 0, m = 0;  // float16
    std::int8_t codes[num_values];
    std::int8_t sub_scales[num_groups], sub_mins[num_groups];
};

// What a block format has in common: which packed format takes its codes and scales, and how a split block becomes
// floats.
template <typename Stored, int values, int bytes, Format packed_as, bool mins, bool sub_scaled>
struct BlockFormat {
    static constexpr int num_values = values, num_bytes = bytes;
    static constexpr bool is_quantized = true;
    static constexpr Format packed = packed_as;
    static constexpr QuantKind kind = {mins, sub_scaled};
    static constexpr int group = traits_of(packed).group_len;
    static_assert(!mins || traits_of(packed).may_have_mins, "the packed format has no minimums");
    static_assert(!sub_scaled || (may_have_sub_scales(packed) && values == kSuperBlockInputs),
                  "the packed format has no sub-scales");
    using Split = Block<values, values / group>;

    static void unpack(const Byte* __restrict block, float* __restrict out) {
        Split parts;
        Stored::split(block, parts);
        const float d = from_half(parts.d), m = from_half(parts.m);
        for (int g = 0; g < values / group; ++g) {
            const float scale = sub_scaled ? d * static_cast<float>(parts.sub_scales[g]) : d;
            const float min = sub_scaled && mins ? m * static_cast<float>(parts.sub_mins[g]) : m;
            for (int i = g * group; i < (g + 1) * group; ++i) {
                const float value = static_cast<float>(parts.codes[i]) * scale;
                out[i] = !mins ? value : sub_scaled ? value - min : value + min;
            }
        }
    }
};

inline std::uint16_t word_at(const Byte* bytes) { return load<std::uint16_t>(bytes); }

// Of the 32 numbers of a block, byte i holds i in its low half and i + 16 in its high one.
inline void split_nibbles(const Byte* __restrict q, int zero, std::int8_t* __restrict codes) {
    for (int i = 0; i < 16; ++i) codes[i] = static_cast<std::int8_t>((q[i] & 15) - zero);
    for (int i = 0; i < 16; ++i) codes[16 + i] = static_cast<std::int8_t>((q[i] >> 4) - zero);
}

struct Q4_0 : BlockFormat<Q4_0, 32, 18, Format::int4_32, false, false> {
    static constexpr const char* name = "Q4_0";
    static void split(const Byte* __restrict block, Split& parts) {
        parts.d = word_at(block);
        split_nibbles(block + 2, 8, parts.codes);
    }
};

struct Q4_1 : BlockFormat<Q4_1, 32, 20, Format::int4_32, true, false> {
    static constexpr const char* name = "Q4_1";
    static void split(const Byte* __restrict block, Split& parts) {
        parts.d = word_at(block), parts.m = word_at(block + 2);
        split_nibbles(block + 4, 0, parts.codes);
    }
};

// Bit i of `fifth` is the upper one of number i.
inline void split_five_bits(const Byte* __restrict q, std::uint32_t fifth, int zero, std::int8_t* __restrict codes) {
    std::int32_t numbers[32];
    for (int i = 0; i < 16; ++i) numbers[i] = q[i] & 15;
    for (int i = 0; i < 16; ++i) numbers[16 + i] = q[i] >> 4;
    for (int i = 0; i < 32; ++i) numbers[i] |= static_cast<std::int32_t>((fifth >> i & 1) << 4);
    for (int i = 0; i < 32; ++i) codes[i] = static_cast<std::int8_t>(numbers[i] - zero);
}

struct Q5_0 : BlockFormat<Q5_0, 32, 22, Format::int8_32, false, false> {
    static constexpr const char* name = "Q5_0";
    static void split(const Byte* __restrict block, Split& parts) {
        parts.d = word_at(block);
        split_five_bits(block + 6, load<std::uint32_t>(block + 2), 16, parts.codes);
    }
};

struct Q5_1 : BlockFormat<Q5_1, 32, 24, Format::int8_32, true, false> {
    static constexpr const char* name = "Q5_1";
    static void split(const Byte* __restrict block, Split& parts) {
        parts.d = word_at(block), parts.m = word_at(block + 2);
        split_five_bits(block + 8, load<std::uint32_t>(block + 4), 0, parts.codes);
    }
};

struct Q8_0 : BlockFormat<Q8_0, 32, 34, Format::int8_32, false, false> {
    static constexpr const char* name = "Q8_0";
    static void split(const Byte* __restrict block, Split& parts) {
        parts.d = word_at(block);
        std::memcpy(parts.codes, block + 2, 32);
    }
};

// Scale s and offset t of group g, from the twelve bytes that hold 8 + 8 six-bit numbers: the first four of each kind
// in the low bits of bytes 0-3 and 4-7; of the last four, the low four bits in bytes 8-11 and the high two on top of
// the first four.
inline int group_scale(const Byte* packed, int g) {
    return g < 4 ? packed[g] & 63 : (packed[g + 4] & 15) | (packed[g - 4] >> 6 << 4);
}
inline int group_offset(const Byte* packed, int g) {
    return g < 4 ? packed[g + 4] & 63 : (packed[g + 4] >> 4) | (packed[g] >> 6 << 4);
}

// What Q4_K and Q5_K begin with.
template <typename Split>
inline void split_scales(const Byte* __restrict block, Split& parts) {
    parts.d = word_at(block), parts.m = word_at(block + 2);
    for (int g = 0; g < 8; ++g) {
        parts.sub_scales[g] = static_cast<std::int8_t>(group_scale(block + 4, g));
        parts.sub_mins[g] = static_cast<std::int8_t>(group_offset(block + 4, g));
    }
}

// Groups 2k and 2k + 1 are the low and the high halves of the same 32 bytes.

struct Q4_K : BlockFormat<Q4_K, 256, 144, Format::int4_32, true, true> {
    static constexpr const char* name = "Q4_K";
    static void split(const Byte* __restrict block, Split& parts) {
        split_scales(block, parts);
        for (int g = 0; g < 8; ++g) {
            const Byte* q = block + 16 + g / 2 * 32;
            const int shift = g % 2 * 4;
            for (int i = 0; i < 32; ++i) parts.codes[32 * g + i] = static_cast<std::int8_t>(q[i] >> shift & 15);
        }
    }
};

struct Q5_K : BlockFormat<Q5_K, 256, 176, Format::int8_32, true, true> {
    static constexpr const char* name = "Q5_K";
    static void split(const Byte* __restrict block, Split& parts) {
        split_scales(block, parts);
        const Byte* high = block + 16;  // bit g of byte i: the fifth bit of value i of group g
        for (int g = 0; g < 8; ++g) {
            const Byte* q = block + 48 + g / 2 * 32;
            const int shift = g % 2 * 4;
            for (int i = 0; i < 32; ++i)
                parts.codes[32 * g + i] = static_cast<std::int8_t>((q[i] >> shift & 15) | (high[i] >> g & 1) << 4);
        }
    }
};

// Each half of 128 values has four groups of 32: the low and the high halves of bytes 0-31 and 32-63 in the order
// low, low, high, high. Bits 2g and 2g + 1 of high byte i are the upper ones of value i of group g.
struct Q6_K : BlockFormat<Q6_K, 256, 210, Format::int8_16, false, true> {
    static constexpr const char* name = "Q6_K";
    static void split(const Byte* __restrict block, Split& parts) {
        parts.d = word_at(block + 208);
        std::memcpy(parts.sub_scales, block + 192, 16);
        for (int g = 0; g < 8; ++g) {
            const Byte* q = block + g / 4 * 64 + g % 2 * 32;
            const Byte* high = block + 128 + g / 4 * 32;
            const int shift = g % 4 / 2 * 4, high_shift = g % 4 * 2;
            for (int i = 0; i < 32; ++i) {
                const int number = (q[i] >> shift & 15) | (high[i] >> high_shift & 3) << 4;
                parts.codes[32 * g + i] = static_cast<std::int8_t>(number - 32);
            }
        }
    }
};

}  // namespace octavo
