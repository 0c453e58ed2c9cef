// RoPE with the KV write: where keys and values of a token lie in the cache, and how they get there: as they are,
// rounded to bfloat16, or quantized to int8 with a scale for each token and head.
#pragma once

#include "kernels/elementwise.h"
#include "kernels/kernels.h"
#include "simd/vec.h"

namespace {

// Whether numbers are codes, which mean nothing without their token's scale.
template <class T>
constexpr bool kScaled = sizeof(T) == 1;

// Where a KV head's keys of one block begin; its values; the scales of both.
template <class T>
OCTAVO_INLINE T* keys_at(const KVView& kv, std::int64_t block, int head) {
    const std::int64_t a_slot = 2 * (kv.head_dim * sizeof(T) + (kScaled<T> ? sizeof(float) : 0));
    return reinterpret_cast<T*>(static_cast<char*>(kv.blocks) + block * kv.block_stride + head * kv.block_size * a_slot);
}

template <class T>
OCTAVO_INLINE T* values_at(const KVView& kv, T* keys) {
    return keys + std::int64_t{kv.block_size} * kv.head_dim;
}

template <class T>
OCTAVO_INLINE float* scales_at(const KVView& kv, T* keys) {
    return reinterpret_cast<float*>(keys + std::int64_t{2} * kv.block_size * kv.head_dim);
}

// Turns dimension i with i + head_dim / 2, in place, after the norm.
OCTAVO_INLINE void norm_and_rotate(float* x, const float* norm, const RopeArgs& args, int head_dim) {
    if (norm != nullptr) rms_norm(x, norm, args.eps, head_dim, x);
    const int half = head_dim / 2;
    int i = 0;
    for (; i + W <= half; i += W) {
        const vf low = load(x + i), high = load(x + half + i), cos = load(args.cos + i), sin = load(args.sin + i);
        store(x + i, low * cos - high * sin);
        store(x + half + i, high * cos + low * sin);
    }
    for (; i < half; ++i) {
        const float low = x[i], high = x[half + i];
        x[i] = low * args.cos[i] - high * args.sin[i];
        x[half + i] = high * args.cos[i] + low * args.sin[i];
    }
}

// The bits of a row's largest magnitude: magnitudes compare as their bits do, and NaN is above infinity.
OCTAVO_INLINE std::int32_t largest_bits(const float* x, int n) {
    constexpr std::int32_t kMagnitude = 0x7fffffff;
    vi largest = {};
    int i = 0;
    for (; i + W <= n; i += W) {
        const vi bits = (vi)load(x + i) & kMagnitude;
        largest = bits > largest ? bits : largest;
    }
    std::int32_t most = 0, bits;
    for (int lane = 0; lane < W; ++lane) most = largest[lane] > most ? largest[lane] : most;
    for (; i < n; ++i) {
        std::memcpy(&bits, x + i, sizeof bits);
        most = (bits & kMagnitude) > most ? bits & kMagnitude : most;
    }
    return most;
}

// The scale of a row's codes, from -127 to 127: its largest magnitude over 127. NaN where a number is not finite, so
// that what is made of the row is NaN as well.
OCTAVO_INLINE float scale_of(const float* x, int n) {
    const std::int32_t most = largest_bits(x, n);
    if (most >= 0x7f800000) return __builtin_nanf("");
    float magnitude;
    std::memcpy(&magnitude, &most, sizeof most);
    return magnitude / 127.0f;
}

// Whether the cache would hold a number of the row that is not finite: bfloat16 rounds the largest ones to infinity.
template <class T>
OCTAVO_INLINE bool overflows(const float* x, int n) {
    return largest_bits(x, n) >= (sizeof(T) == 2 ? 0x7f7f8000 : 0x7f800000);
}

// x / scale to the nearest integers, ties to even; 0 where the scale is 0 or NaN.
OCTAVO_INLINE vi codes_of(vf x, float scale) {
    if (!(scale > 0.0f)) return vi{};
    // Adding 1.5 * 2^23 rounds, and leaves the integer in the low bits.
    const vf magic = splat(12582912.0f), most = splat(127.0f);
    // A scale that lost its digits below the smallest normal number can make a quotient larger than 127.
    vf quotient = x / splat(scale);
    quotient = select(quotient > most, most, max(-most, quotient));
    return (vi)(quotient + magic) - (vi)magic;
}

// Where one token's keys lie, `stride` units apart, each of as many dimensions as the cache keeps together.
template <class T>
struct KeyPlace;

template <>
struct KeyPlace<std::uint16_t> {
    static constexpr int kUnit = 2;
    using Unit = std::uint32_t;
};

template <>
struct KeyPlace<std::int8_t> {
    static constexpr int kUnit = 1;
    using Unit = std::int8_t;
};

template <>
struct KeyPlace<float> {
    static constexpr int kUnit = 1;
    using Unit = float;
};

// W numbers as the cache holds them, side by side.
OCTAVO_INLINE void put(std::uint16_t* to, vf x, float) {
    const vh halves = halves_of(x);
    std::memcpy(to, &halves, sizeof halves);
}
OCTAVO_INLINE void put(std::int8_t* to, vf x, float scale) { store_bytes(to, codes_of(x, scale)); }
OCTAVO_INLINE void put(float* to, vf x, float) { store(to, x); }

// A token's row of keys (kIsKey) or values.
template <bool kIsKey, class T>
OCTAVO_INLINE void write_row(const KVView& kv, T* to, const float* x, float scale) {
    using Place = KeyPlace<T>;
    for (int d = 0; d < kv.head_dim; d += W) {
        const int count = kv.head_dim - d < W ? kv.head_dim - d : W;
        float part[W] = {};
        T made[W];
        if (count < W) std::memcpy(part, x + d, sizeof(float) * static_cast<std::size_t>(count));
        put(made, load(count < W ? part : x + d), scale);
        if constexpr (kIsKey) {
            typename Place::Unit units[W / Place::kUnit];
            std::memcpy(units, made, sizeof made);
            auto* place = reinterpret_cast<typename Place::Unit*>(to) + d / Place::kUnit * kv.block_size;
            for (int i = 0; i < count / Place::kUnit; ++i) place[i * kv.block_size] = units[i];
        } else {
            std::memcpy(to + d, made, sizeof(T) * static_cast<std::size_t>(count));
        }
    }
}

// A value that is not finite would reach those too who do not see it, for whom its weight is 0. So it is 0, and the key
// is NaN, which spoils the scores of those who see it.
template <class T>
inline __attribute__((noinline)) void write_lost(const KVView& kv, T* keys, std::int64_t place) {
    constexpr int kUnit = KeyPlace<T>::kUnit;
    T nan[W];
    put(nan, splat(__builtin_nanf("")), 1.0f);
    for (int d = 0; d < kv.head_dim; ++d) keys[(d / kUnit * kv.block_size + place) * kUnit + d % kUnit] = nan[0];
    std::memset(values_at(kv, keys) + place * kv.head_dim, 0, sizeof(T) * static_cast<std::size_t>(kv.head_dim));
}

template <class T>
OCTAVO_INLINE void write_kv(const KVView& kv, const RopeArgs& args, const float* k, const float* v, int head) {
    const std::int64_t block = args.slot / kv.block_size, place = args.slot % kv.block_size;
    T* keys = keys_at<T>(kv, block, head);
    float key_scale = 1.0f, value_scale = 1.0f;
    if constexpr (kScaled<T>) {
        float* scales = scales_at(kv, keys);
        scales[place] = key_scale = scale_of(k, kv.head_dim);
        scales[kv.block_size + place] = value_scale = scale_of(v, kv.head_dim);
    }
    if constexpr (!kScaled<T>)
        if (overflows<T>(v, kv.head_dim)) return write_lost<T>(kv, keys, place);
    write_row<true>(kv, keys + place * KeyPlace<T>::kUnit, k, key_scale);
    write_row<false>(kv, values_at(kv, keys) + place * kv.head_dim, v, value_scale);
}

// Asks for the lines that a token's keys will be written to: they lie one behind the other, and in no cache.
template <class T>
OCTAVO_INLINE void fetch_keys(const KVView& kv, std::int64_t slot) {
    using Place = KeyPlace<T>;
    for (int head = 0; head < kv.num_kv_heads; ++head) {
        const T* to = keys_at<T>(kv, slot / kv.block_size, head) + slot % kv.block_size * Place::kUnit;
        const int of_a_line = 64 / (kv.block_size * static_cast<int>(sizeof(T)));  // dimensions
        for (int d = 0; d < kv.head_dim; d += of_a_line > Place::kUnit ? of_a_line : Place::kUnit)
            __builtin_prefetch(to + d * kv.block_size, 1, 3);
    }
}

void rope(const KVView& kv, const RopeArgs& args) {
    float* x = args.qkv;
    if (args.next_slot / kv.block_size != args.slot / kv.block_size) {
        if (kv.dtype == Dtype::bfloat16)
            fetch_keys<std::uint16_t>(kv, args.next_slot);
        else if (kv.dtype == Dtype::int8)
            fetch_keys<std::int8_t>(kv, args.next_slot);
        else
            fetch_keys<float>(kv, args.next_slot);
    }
    for (int head = 0; head < args.num_heads; ++head, x += kv.head_dim)
        norm_and_rotate(x, args.query_norm, args, kv.head_dim);
    for (int head = 0; head < kv.num_kv_heads; ++head, x += kv.head_dim) {
        norm_and_rotate(x, args.key_norm, args, kv.head_dim);
        const float* v = x + std::int64_t{kv.num_kv_heads} * kv.head_dim;
        if (kv.dtype == Dtype::bfloat16)
            write_kv<std::uint16_t>(kv, args, x, v, head);
        else if (kv.dtype == Dtype::int8)
            write_kv<std::int8_t>(kv, args, x, v, head);
        else
            write_kv<float>(kv, args, x, v, head);
    }
}

}  // namespace
