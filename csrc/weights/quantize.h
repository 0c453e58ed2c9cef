// Quantizes weights without calibration: groups of neighboring values become integer codes, each group with the scale
// (and minimum) that leave the least error.
//
// Knows one group at a time. Scales are rounded to float16 before the codes are chosen, so that these fit what is kept.

#pragma once

#include "kernels/format_traits.h"
#include "weights/floats.h"

namespace octavo {

// To the nearest integer, ties to even, within [low, high]; low for NaN. |x| < 2^22.
OCTAVO_INLINE float nearest_within(float x, float low, float high) {
    constexpr float magic = 12582912.0f;  // 1.5 * 2^23
    x = x > low ? x : low;
    x = x < high ? x : high;
    return (x + magic) - magic;
}

OCTAVO_INLINE float smaller(float a, float b) { return a < b ? a : b; }
OCTAVO_INLINE float larger(float a, float b) { return a > b ? a : b; }

OCTAVO_INLINE float rounded_to_half(float x, std::uint16_t& word) {
    word = Float16::of(x);
    return from_half(word);
}

// value = code * scale, code in -127..127: the largest value takes the largest code. False if float16 cannot hold the
// scale.
OCTAVO_INLINE bool quantize_int8(const float* __restrict x, int n, std::int8_t* __restrict codes, std::uint16_t& scale) {
    float largest = 0.0f;
    for (int i = 0; i < n; ++i) largest = larger(largest, larger(x[i], -x[i]));
    const float d = rounded_to_half(largest / 127.0f, scale), inverse = d > 0.0f ? 1.0f / d : 0.0f;
    if (Float16::bad(scale)) return false;
    for (int i = 0; i < n; ++i) codes[i] = static_cast<std::int8_t>(nearest_within(x[i] * inverse, -127.0f, 127.0f));
    return true;
}

// A group of values, padded with ones that count for nothing. Sums over it are kept in `lanes` parts, which become
// vectors.
constexpr int group32 = 32, lanes = 8;

struct Group {
    float x[group32], counts[group32], count, sum_x;

    OCTAVO_INLINE Group(const float* values, int n) : count(static_cast<float>(n)) {
        for (int i = 0; i < group32; ++i) x[i] = values[i < n ? i : 0], counts[i] = i < n ? 1.0f : 0.0f;
        sum_x = sum([&](int i) { return x[i]; });
    }

    // The sum of f(i) over the values that count.
    template <class F>
    OCTAVO_INLINE float sum(F f) const {
        float parts[lanes] = {};
        for (int i = 0; i < group32; i += lanes)
            for (int lane = 0; lane < lanes; ++lane) parts[lane] += f(i + lane) * counts[i + lane];
        float total = 0.0f;
        for (float part : parts) total += part;
        return total;
    }
};

struct Line {
    float scale, min;
};

// The codes 0..15 nearest to (x - min) / scale, as floats; the squared error of what they stand for.
OCTAVO_INLINE float choose_codes(const Group& group, Line line, float* __restrict codes) {
    const float inverse = line.scale > 0.0f ? 1.0f / line.scale : 0.0f;
    for (int i = 0; i < group32; ++i) codes[i] = nearest_within((group.x[i] - line.min) * inverse, 0.0f, 15.0f);
    return group.sum([&](int i) {
        const float left = group.x[i] - (codes[i] * line.scale + line.min);
        return left * left;
    });
}

// The line through (code, x) with the least squared error; `line` itself where all codes are equal.
OCTAVO_INLINE Line fit_line(const Group& group, const float* __restrict codes, Line line) {
    const float count = group.count, sum_x = group.sum_x, sum_c = group.sum([&](int i) { return codes[i]; });
    const float sum_cc = group.sum([&](int i) { return codes[i] * codes[i]; });
    const float sum_cx = group.sum([&](int i) { return codes[i] * group.x[i]; });
    const float spread = count * sum_cc - sum_c * sum_c;
    if (!(spread > 0.0f)) return line;
    const float scale = (count * sum_cx - sum_c * sum_x) / spread;
    return scale > 0.0f ? Line{scale, (sum_x - scale * sum_c) / count} : line;
}

// value = code * scale + min, code in 0..15, for at most 32 values. Lines over the whole range and over somewhat less of
// it are tried, each fitted to its own codes; the one with the least squared error is kept. False if float16 cannot hold
// it.
OCTAVO_INLINE bool quantize_int4(const float* __restrict x, int n, std::int8_t* __restrict codes, std::uint16_t& scale,
                                 std::uint16_t& min) {
    constexpr int tries = 3, refits = 2;
    const Group group(x, n);
    float low = x[0], high = x[0], chosen[group32];
    for (int i = 1; i < n; ++i) low = smaller(low, x[i]), high = larger(high, x[i]);
    Line best{(high - low) / 15.0f, low};
    float least = choose_codes(group, best, chosen);
    for (int attempt = 0; attempt < tries; ++attempt) {
        const float cut = 0.06f * static_cast<float>(attempt) * (high - low);
        Line line{(high - low - cut) / 15.0f, low + cut / 2};
        for (int refit = 0; refit <= refits; ++refit) {
            const float error = choose_codes(group, line, chosen);
            if (error < least) least = error, best = line;
            line = fit_line(group, chosen, line);
        }
    }
    const Line kept{rounded_to_half(best.scale, scale), rounded_to_half(best.min, min)};
    if (Float16::bad(scale) || Float16::bad(min)) return false;
    choose_codes(group, kept, chosen);
    for (int i = 0; i < n; ++i) codes[i] = static_cast<std::int8_t>(chosen[i]);
    return true;
}

// What Octavo makes of floats, by the names that it gives them. `quantize` does so with one group of at most a packed
// group's values.

struct OwnInt8 {
    static constexpr const char* name = "int8";
    static constexpr Format packed = Format::int8_64;
    static constexpr QuantKind kind = {false, false};
    OCTAVO_INLINE static bool quantize(const float* __restrict x, int n, std::int8_t* __restrict codes,
                                       std::uint16_t& scale, std::uint16_t*) {
        return quantize_int8(x, n, codes, scale);
    }
};

struct OwnInt4 {
    static constexpr const char* name = "int4";
    static constexpr Format packed = Format::int4_32;
    static constexpr QuantKind kind = {true, false};
    static_assert(traits_of(packed).group_len == group32);
    OCTAVO_INLINE static bool quantize(const float* __restrict x, int n, std::int8_t* __restrict codes,
                                       std::uint16_t& scale, std::uint16_t* min) {
        return quantize_int4(x, n, codes, scale, *min);
    }
};

}  // namespace octavo
