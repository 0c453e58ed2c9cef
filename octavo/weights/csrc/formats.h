// What one block of each stored format means as float32: plain floats and the block formats of GGML.
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

#pragma once

#include "floats.h"

namespace octavo {

using Byte = std::uint8_t;

inline float half_at(const Byte* bytes) { return from_half(load<std::uint16_t>(bytes)); }

struct F32 {
    static constexpr const char* name = "F32";
    static constexpr int num_values = 1, num_bytes = 4;
    static void unpack(const Byte* __restrict block, float* __restrict values) { *values = load<float>(block); }
};

struct F16 {
    static constexpr const char* name = "F16";
    static constexpr int num_values = 1, num_bytes = 2;
    static void unpack(const Byte* __restrict block, float* __restrict values) { *values = half_at(block); }
};

struct BF16 {
    static constexpr const char* name = "BF16";
    static constexpr int num_values = 1, num_bytes = 2;
    static void unpack(const Byte* __restrict block, float* __restrict values) { *values = from_bf16(load<std::uint16_t>(block)); }
};

// Of the 32 numbers of a block, byte i holds i in its low half and i + 16 in its high one.

struct Q4_0 {
    static constexpr const char* name = "Q4_0";
    static constexpr int num_values = 32, num_bytes = 18;
    static void unpack(const Byte* __restrict block, float* __restrict values) {
        const float d = half_at(block);
        const Byte* q = block + 2;
        for (int i = 0; i < 16; ++i) values[i] = static_cast<float>((q[i] & 15) - 8) * d;
        for (int i = 0; i < 16; ++i) values[16 + i] = static_cast<float>((q[i] >> 4) - 8) * d;
    }
};

struct Q4_1 {
    static constexpr const char* name = "Q4_1";
    static constexpr int num_values = 32, num_bytes = 20;
    static void unpack(const Byte* __restrict block, float* __restrict values) {
        const float d = half_at(block), m = half_at(block + 2);
        const Byte* q = block + 4;
        for (int i = 0; i < 16; ++i) values[i] = static_cast<float>(q[i] & 15) * d + m;
        for (int i = 0; i < 16; ++i) values[16 + i] = static_cast<float>(q[i] >> 4) * d + m;
    }
};

// Bit i of `fifth` is the upper one of number i.
struct FiveBits {
    std::int32_t of[32];
    FiveBits(const Byte* packed, std::uint32_t fifth) {
        for (int i = 0; i < 16; ++i) of[i] = packed[i] & 15;
        for (int i = 0; i < 16; ++i) of[16 + i] = packed[i] >> 4;
        for (int i = 0; i < 32; ++i) of[i] |= static_cast<std::int32_t>((fifth >> i & 1) << 4);
    }
};

struct Q5_0 {
    static constexpr const char* name = "Q5_0";
    static constexpr int num_values = 32, num_bytes = 22;
    static void unpack(const Byte* __restrict block, float* __restrict values) {
        const float d = half_at(block);
        const FiveBits q(block + 6, load<std::uint32_t>(block + 2));
        for (int i = 0; i < 32; ++i) values[i] = static_cast<float>(q.of[i] - 16) * d;
    }
};

struct Q5_1 {
    static constexpr const char* name = "Q5_1";
    static constexpr int num_values = 32, num_bytes = 24;
    static void unpack(const Byte* __restrict block, float* __restrict values) {
        const float d = half_at(block), m = half_at(block + 2);
        const FiveBits q(block + 8, load<std::uint32_t>(block + 4));
        for (int i = 0; i < 32; ++i) values[i] = static_cast<float>(q.of[i]) * d + m;
    }
};

struct Q8_0 {
    static constexpr const char* name = "Q8_0";
    static constexpr int num_values = 32, num_bytes = 34;
    static void unpack(const Byte* __restrict block, float* __restrict values) {
        const float d = half_at(block);
        for (int i = 0; i < 32; ++i) values[i] = static_cast<float>(static_cast<std::int8_t>(block[2 + i])) * d;
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

// Groups 2k and 2k + 1 are the low and the high halves of the same 32 bytes.

struct Q4_K {
    static constexpr const char* name = "Q4_K";
    static constexpr int num_values = 256, num_bytes = 144;
    static void unpack(const Byte* __restrict block, float* __restrict values) {
        const float d = half_at(block), dmin = half_at(block + 2);
        for (int g = 0; g < 8; ++g) {
            const float scale = d * static_cast<float>(group_scale(block + 4, g));
            const float offset = dmin * static_cast<float>(group_offset(block + 4, g));
            const Byte* q = block + 16 + g / 2 * 32;
            const int shift = g % 2 * 4;
            for (int i = 0; i < 32; ++i) values[32 * g + i] = static_cast<float>(q[i] >> shift & 15) * scale - offset;
        }
    }
};

struct Q5_K {
    static constexpr const char* name = "Q5_K";
    static constexpr int num_values = 256, num_bytes = 176;
    static void unpack(const Byte* __restrict block, float* __restrict values) {
        const float d = half_at(block), dmin = half_at(block + 2);
        const Byte* high = block + 16;  // bit g of byte i: the fifth bit of value i of group g
        for (int g = 0; g < 8; ++g) {
            const float scale = d * static_cast<float>(group_scale(block + 4, g));
            const float offset = dmin * static_cast<float>(group_offset(block + 4, g));
            const Byte* q = block + 48 + g / 2 * 32;
            const int shift = g % 2 * 4;
            for (int i = 0; i < 32; ++i) {
                const int number = (q[i] >> shift & 15) | (high[i] >> g & 1) << 4;
                values[32 * g + i] = static_cast<float>(number) * scale - offset;
            }
        }
    }
};

// Each half of 128 values has four groups of 32: the low and the high halves of bytes 0-31 and 32-63 in the order
// low, low, high, high. Bits 2g and 2g + 1 of high byte i are the upper ones of value i of group g.
struct Q6_K {
    static constexpr const char* name = "Q6_K";
    static constexpr int num_values = 256, num_bytes = 210;
    static void unpack(const Byte* __restrict block, float* __restrict values) {
        const float d = half_at(block + 208);
        for (int g = 0; g < 8; ++g) {
            const Byte* q = block + g / 4 * 64 + g % 2 * 32;
            const Byte* high = block + 128 + g / 4 * 32;
            const int shift = g % 4 / 2 * 4, high_shift = g % 4 * 2;
            for (int half = 0; half < 2; ++half) {
                const float scale = d * static_cast<float>(static_cast<std::int8_t>(block[192 + 2 * g + half]));
                for (int i = 16 * half; i < 16 * half + 16; ++i) {
                    const int number = (q[i] >> shift & 15) | (high[i] >> high_shift & 3) << 4;
                    values[32 * g + i] = static_cast<float>(number - 32) * scale;
                }
            }
        }
    }
};

}  // namespace octavo
