// Kernels that go along a row: norms, activations, the input of a product, and storing its sums.
#pragma once

#include "kernels/kernels.h"
#include "simd/vec.h"

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

OCTAVO_INLINE void store_row(const StoreArgs& args, int row) {
    alignas(64) float values[kPanel], ups[kPanel];
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

void store_sums(const StoreArgs& args) {
    for (int row = 0; row < args.num_rows; ++row) store_row(args, row);
}

// A row of a product's input: normed where there is a norm, and padded with zeros.
OCTAVO_INLINE void normed_row(const PackArgs& args, int row, float* out) {
    const float* x = args.x + (args.rows != nullptr ? args.rows[row] : row) * args.stride;
    if (args.norm != nullptr)
        rms_norm(x, args.norm, args.eps, args.num_in, out);
    else
        std::memcpy(out, x, sizeof(float) * static_cast<std::size_t>(args.num_in));
    for (int i = args.num_in; i < args.padded_in; ++i) out[i] = 0.0f;
}

}  // namespace
