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

OCTAVO_INLINE void put(std::uint16_t& to, float x) { to = round_to_bf16(x); }
OCTAVO_INLINE void put(float& to, float x) { to = x; }

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

// The scale of a row's codes, from -127 to 127: its largest magnitude over 127. NaN where a number is not finite, so
// that what is made of the row is NaN as well.
OCTAVO_INLINE float scale_of(const float* x, int n) {
    constexpr std::int32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000;
    vi largest = {};  // magnitudes compare as their bits do, and NaN is above infinity
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
    if (most >= kInfinity) return __builtin_nanf("");
    float magnitude;
    std::memcpy(&magnitude, &most, sizeof most);
    return magnitude / 127.0f;
}

// put(i, code) for each number of a row: x[i] / scale to the nearest integer, ties to even. All zero where the
// scale is 0 or NaN.
template <class F>
OCTAVO_INLINE void quantize(const float* x, int n, float scale, F&& put) {
    if (!(scale > 0.0f)) {
        for (int i = 0; i < n; ++i) put(i, std::int8_t{0});
        return;
    }
    // Adding 1.5 * 2^23 rounds, and leaves the integer in the low bits.
    const vf magic = splat(12582912.0f), most = splat(127.0f);
    for (int i = 0; i < n; i += W) {
        float part[W] = {};
        const int count = n - i < W ? n - i : W;
        for (int lane = 0; lane < count; ++lane) part[lane] = x[i + lane];
        // A scale that lost its digits below the smallest normal number can make a quotient larger than 127.
        vf quotient = load(part) / splat(scale);
        quotient = select(quotient > most, most, max(-most, quotient));
        const vi codes = (vi)(quotient + magic) - (vi)magic;
        for (int lane = 0; lane < count; ++lane) put(i + lane, static_cast<std::int8_t>(codes[lane]));
    }
}

template <class T>
OCTAVO_INLINE void write_kv(const KVView& kv, const RopeArgs& args, const float* k, const float* v, int head) {
    constexpr int kPair = sizeof(T) == 2 ? 2 : 1;
    const std::int64_t block = args.slot / kv.block_size, place = args.slot % kv.block_size;
    T* keys = keys_at<T>(kv, block, head);
    T* values = values_at(kv, keys) + place * kv.head_dim;
    if constexpr (kScaled<T>) {
        float* scales = scales_at(kv, keys);
        float &key_scale = scales[place], &value_scale = scales[kv.block_size + place];
        key_scale = scale_of(k, kv.head_dim);
        value_scale = scale_of(v, kv.head_dim);
        quantize(k, kv.head_dim, key_scale, [&](int d, T code) { keys[d * kv.block_size + place] = code; });
        quantize(v, kv.head_dim, value_scale, [&](int d, T code) { values[d] = code; });
    } else {
        for (int d = 0; d < kv.head_dim; ++d) put(keys[(d / kPair * kv.block_size + place) * kPair + d % kPair], k[d]);
        for (int d = 0; d < kv.head_dim; ++d) put(values[d], v[d]);
    }
}

void rope(const KVView& kv, const RopeArgs& args) {
    float* x = args.qkv;
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
