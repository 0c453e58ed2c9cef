// float32 to and from the two 16-bit floats, and which words are not finite. Written so that a loop over them becomes
// vector instructions: no branch, no call. Rounding is to nearest, ties to even.
//
// Knows nothing of how floats are stored in a file.

#pragma once

#include <cstdint>
#include <cstring>

// The kernels are compiled twice where it pays: as the whole package is, and for AVX2.
#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define OCTAVO_AVX2 __attribute__((target("avx2")))
#define OCTAVO_INLINE __attribute__((always_inline)) inline
#else
#define OCTAVO_INLINE inline
#endif

namespace octavo {

template <typename To, typename From>
inline To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// Little-endian, as the file formats and the machine are; at any address.
template <typename T>
inline T load(const std::uint8_t* bytes) {
    T value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
}

inline float from_bf16(std::uint16_t word) { return bit_cast<float>(std::uint32_t{word} << 16); }

// Exact: a normal number is moved to float32's bias, 112 above; a subnormal is its mantissa times 2^-24.
inline float from_half(std::uint16_t word) {
    const std::uint32_t sign = std::uint32_t{word & 0x8000u} << 16, magnitude = word & 0x7fffu;
    const std::uint32_t bias = (magnitude >= 0x7c00 ? 224u : 112u) << 23;  // infinity and NaN keep an exponent of ones
    const std::uint32_t normal = (magnitude << 13) + bias;
    const auto subnormal = bit_cast<std::uint32_t>(static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24f);
    return bit_cast<float>(sign | (magnitude < 0x400 ? subnormal : normal));
}

// What a float32 is rounded to. `of` gives the word, `bad` is not zero for infinity and NaN.

struct Float32 {
    using Word = std::uint32_t;
    static constexpr const char* name = "float32";
    static Word of(float value) { return bit_cast<Word>(value); }
    static std::uint32_t bad(Word word) { return (word & 0x7f800000u) == 0x7f800000u; }
};

struct Bfloat16 {
    using Word = std::uint16_t;
    static constexpr const char* name = "bfloat16";
    static Word of(float value) {
        const auto bits = bit_cast<std::uint32_t>(value);
        const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        const std::uint32_t quiet = (bits >> 16) | 0x40u;  // a NaN stays one, whatever its lower bits
        return static_cast<Word>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
    }
    static std::uint32_t bad(Word word) { return (word & 0x7f80u) == 0x7f80u; }
};

struct Float16 {
    using Word = std::uint16_t;
    static constexpr const char* name = "float16";
    static Word of(float value) {
        const auto bits = bit_cast<std::uint32_t>(value);
        const std::uint32_t magnitude = bits & 0x7fffffffu;
        // Past 65504, where 65520 already rounds up, the sum below has gone beyond the word: that is infinity too.
        std::uint32_t word = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
        word = magnitude >= 0x47800000u ? 0x7c00u : word;
        word = magnitude > 0x7f800000u ? 0x7e00u | ((magnitude >> 13) & 0x3ffu) : word;
        // Below 2^-14 half has a fixed last place, 2^-24: that of float32 near 1/2, so an addition rounds to it.
        const auto shifted = bit_cast<std::uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
        word = magnitude < 0x38800000u ? shifted : word;
        return static_cast<Word>(word | ((bits >> 16) & 0x8000u));
    }
    static std::uint32_t bad(Word word) { return (word & 0x7c00u) == 0x7c00u; }
};

}  // namespace octavo
