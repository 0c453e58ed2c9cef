// Kernels that go along a row: norms, activations, RoPE with the cache write, packing a product's input, and storing
// its sums.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace {

using namespace octavo;

// 1 / sqrt(mean(x^2) + eps). One order: W running sums, their tree, then what is left of the row.
OCTAVO_INLINE float inverse_rms(const float* x, int n, float eps) {
    vf squares = splat(0.0f);
    int i = 0;
    for (; i + W <= n; i += W) squares = fma(load(x + i), load(x + i), squares);
    float total = sum(squares);
    for (; i < n; ++i) total = fma1(x[i], x[i], total);
    return 1.0f / __builtin_sqrtf(total / static_cast<float>(n) + eps);
}

void rms_norm(const float* x, const float* norm, float eps, int n, float* out) {
    const float scale = inverse_rms(x, n, eps);
    int i = 0;
    for (; i + W <= n; i += W) store(out + i, load(x + i) * scale * load(norm + i));
    for (; i < n; ++i) out[i] = x[i] * scale * norm[i];
}

OCTAVO_INLINE vf silu(vf x) { return x / (exp(-x) + 1.0f); }

// The last, incomplete vector of a row goes through a buffer, so that all of a row has the same arithmetic.
template <class F>
OCTAVO_INLINE void map_tail(const float* x, const float* y, int n, float* out, F f) {
    float left[W] = {}, right[W] = {};
    for (int i = 0; i < n; ++i) left[i] = x[i], right[i] = y[i];
    store(left, f(load(left), load(right)));
    for (int i = 0; i < n; ++i) out[i] = left[i];
}

void silu_mul(const float* gate, const float* up, int n, float* out) {
    int i = 0;
    const auto f = [](vf g, vf u) { return silu(g) * u; };
    for (; i + W <= n; i += W) store(out + i, f(load(gate + i), load(up + i)));
    if (i < n) map_tail(gate + i, up + i, n - i, out + i, f);
}

void add(float* x, const float* y, std::int64_t n) {
    std::int64_t i = 0;
    for (; i + W <= n; i += W) store(x + i, load(x + i) + load(y + i));
    for (; i < n; ++i) x[i] += y[i];
}

// sums + bias, over the valid columns of a scratch row that has kPanel of them.
OCTAVO_INLINE void add_bias(const float* sums, const float* bias, int n, float* out) {
    for (int v = 0; v < kPanel; v += W) store(out + v, load(sums + v));
    if (bias != nullptr)
        for (int i = 0; i < n; ++i) out[i] += bias[i];
}

void store_sums(const StoreArgs& args) {
    alignas(64) float values[kPanel], ups[kPanel];
    for (int row = 0; row < args.num_rows; ++row) {
        float* out = args.out + row * args.stride;
        add_bias(args.sums + row * kPanel, args.bias, args.num_columns, values);
        if (args.up != nullptr) {
            add_bias(args.up + row * kPanel, args.up_bias, args.num_columns, ups);
            silu_mul(values, ups, kPanel, values);
        }
        if (args.num_columns == kPanel) {
            for (int v = 0; v < kPanel; v += W)
                store(out + v, args.adds ? load(out + v) + load(values + v) : load(values + v));
        } else {
            for (int i = 0; i < args.num_columns; ++i) out[i] = args.adds ? out[i] + values[i] : values[i];
        }
    }
}

// What a product's input values become: themselves, or bfloat16 in pairs.
OCTAVO_INLINE void normed_row(const PackArgs& args, int row, float* out) {
    const float* x = args.x + (args.rows != nullptr ? args.rows[row] : row) * args.stride;
    if (args.norm != nullptr)
        rms_norm(x, args.norm, args.eps, args.num_in, out);
    else
        std::memcpy(out, x, sizeof(float) * static_cast<std::size_t>(args.num_in));
    for (int i = args.num_in; i < args.padded_in; ++i) out[i] = 0.0f;
}

// --- the cache --------------------------------------------------------------------------------------------------

// Where a KV head's keys and values of one block begin, in elements.
OCTAVO_INLINE std::int64_t keys_at(const KVView& kv, std::int64_t block, int head) {
    return block * kv.block_stride + std::int64_t{head} * 2 * kv.block_size * kv.head_dim;
}

OCTAVO_INLINE std::int64_t values_at(const KVView& kv, std::int64_t block, int head) {
    return keys_at(kv, block, head) + std::int64_t{kv.block_size} * kv.head_dim;
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

template <class T>
OCTAVO_INLINE void write_kv(const KVView& kv, const RopeArgs& args, const float* k, const float* v, int head) {
    constexpr int kPair = sizeof(T) == 2 ? 2 : 1;
    const std::int64_t block = args.slot / kv.block_size, place = args.slot % kv.block_size;
    T* keys = static_cast<T*>(kv.blocks) + keys_at(kv, block, head);
    T* values = static_cast<T*>(kv.blocks) + values_at(kv, block, head) + place * kv.head_dim;
    for (int d = 0; d < kv.head_dim; ++d) put(keys[(d / kPair * kv.block_size + place) * kPair + d % kPair], k[d]);
    for (int d = 0; d < kv.head_dim; ++d) put(values[d], v[d]);
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
        else
            write_kv<float>(kv, args, x, v, head);
    }
}

}  // namespace
