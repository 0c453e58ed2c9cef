// Sampling's vector kernels over one row of logits, or of weights, or a part of it; graph/sampler.cpp puts them
// together. A weight is a token's unnormalized probability: in [0, 1], 0 or a normal number, the largest exactly 1.
//
// Compiled once for each instruction set, as simd/generic.h says.
#pragma once

#include "kernels/kernels.h"
#include "simd/vec.h"

namespace {

constexpr int kSumBlock = 512;  // values whose sum is taken in float32 before it goes on in float64

// Half as many lanes, so that float64 fills no more than a register.
typedef float half_vf __attribute__((vector_size(2 * W)));
typedef double half_vd __attribute__((vector_size(4 * W)));

OCTAVO_INLINE float minus_infinity() { return -__builtin_inff(); }

// Faster than `select` where a vector is wider than the machine's registers.
OCTAVO_INLINE vf zero_unless(vi mask, vf v) { return (vf)((vi)v & mask); }

// x[0, num), the other lanes `fill`: the end of a row, out of the way of the loops.
__attribute__((noinline)) vf load_part(const float* x, int num, float fill) {
    float lanes[W];
    for (int i = 0; i < W; ++i) lanes[i] = i < num ? x[i] : fill;
    return load(lanes);
}

// e^x for x <= 0: exactly 1 at 0; 0 below -87.3; NaN for NaN; else within 3e-7 of it. Half the work of vec.h's exp: the
// range is reduced with ln 2 as one number, and the polynomial (of degree 5, fitted to the least relative error) is as
// good as float32 can show.
OCTAVO_INLINE vf exp_of_negative(vf x) {
    const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const vf shifted = fma(x, splat(1.44269504f), magic);
    const vf r = fma(shifted - magic, splat(-0.69314718f), x);
    vf p = splat(8.290229e-3f);
    p = fma(p, r, splat(4.1898392e-2f));
    p = fma(p, r, splat(0.1666764f));
    p = fma(p, r, splat(0.49999145f));
    p = fma(p, r, splat(0.9999997f));
    p = fma(p, r, splat(1.0f));
    const vu scale = ((vu)shifted << 23) + 0x3f800000u;  // the low bits of `shifted` are the exponent
    return zero_unless(~(x < -87.3f), p * (vf)scale);
}

inline float block_peak(const float* x, int n) {
    vf a = splat(minus_infinity()), b = a, c = a, d = a;
    int i = 0;
    for (; i + 4 * W <= n; i += 4 * W) {
        a = max(load(x + i), a);  // in this order a NaN leaves `a` as it is
        b = max(load(x + i + W), b);
        c = max(load(x + i + 2 * W), c);
        d = max(load(x + i + 3 * W), d);
    }
    for (; i + W <= n; i += W) a = max(load(x + i), a);
    if (i < n) a = max(load_part(x + i, n - i, minus_infinity()), a);
    return max_lane(max(max(a, b), max(c, d)));
}

// The largest value and where the first of its equals is. NaN is overlooked; without any number, -infinity at 0.
inline float peak(const float* x, int n, int* at) {
    float largest = minus_infinity();
    int block = 0;
    for (int start = 0; start < n; start += kSumBlock) {
        const float found = block_peak(x + start, n - start < kSumBlock ? n - start : kSumBlock);
        if (found > largest) largest = found, block = start;
    }
    *at = 0;
    for (int i = block; i < n && i < block + kSumBlock; i += W) {
        const vf v = i + W <= n ? load(x + i) : load_part(x + i, n - i, __builtin_nanf(""));
        const std::uint32_t equal = bits_of(v == largest);
        if (equal == 0) continue;
        *at = i + __builtin_ctz(equal);
        break;
    }
    return largest;
}

inline float block_exp_sum(const float* x, int n, vf largest) {
    vf total = splat(0.0f);
    int i = 0;
    for (; i + W <= n; i += W) total += exp_of_negative(load(x + i) - largest);
    if (i < n) total += exp_of_negative(load_part(x + i, n - i, minus_infinity()) - largest);
    return sum(total);
}

inline bool holds_nan(const float* x, int n) {
    for (int i = 0; i < n; ++i)
        if (x[i] != x[i]) return true;
    return false;
}

// Largest, its place, and the sum that a softmax needs. A NaN or a +infinity makes `largest` NaN: both make the sum
// NaN. Of nothing but -infinity the sum is 0.
inline void scan(const float* x, int n, octavo::ScanResult* result) {
    result->largest = peak(x, n, &result->largest_at);
    result->sum = 0.0;
    if (result->largest == minus_infinity()) {
        if (holds_nan(x, n)) result->largest = __builtin_nanf("");
        return;
    }
    const vf largest = splat(result->largest);
    for (int start = 0; start < n; start += kSumBlock)
        result->sum += block_exp_sum(x + start, n - start < kSumBlock ? n - start : kSumBlock, largest);
    if (result->sum != result->sum) result->largest = __builtin_nanf("");
}

// weights = e^((x - largest) / temperature). The difference comes first, so that no temperature makes an infinity.
// `weights` may be `x`.
inline void weigh(const float* x, int n, float largest, float temperature, float* weights) {
    const vf top = splat(largest), divisor = splat(temperature);
    int i = 0;
    for (; i + W <= n; i += W) store(weights + i, exp_of_negative((load(x + i) - top) / divisor));
    if (i == n) return;
    const vf rest = exp_of_negative((load_part(x + i, n - i, minus_infinity()) - top) / divisor);
    for (int lane = 0; lane < n - i; ++lane) weights[i + lane] = rest[lane];
}

OCTAVO_INLINE half_vd widen_half(vf v, int half) {
    half_vf part;
    std::memcpy(&part, reinterpret_cast<const char*>(&v) + half * sizeof part, sizeof part);
    return __builtin_convertvector(part, half_vd);
}

// The sum, in float64, of the weights that are not below `floor`.
inline double mass(const float* weights, int n, float floor) {
    const vf least = splat(floor);
    half_vd low = {}, high = {};
    const auto add = [&](vf v) __attribute__((always_inline)) {
        const vf kept = zero_unless(v >= least, v);
        low += widen_half(kept, 0);
        high += widen_half(kept, 1);
    };
    int i = 0;
    for (; i + W <= n; i += W) add(load(weights + i));
    if (i < n) add(load_part(weights + i, n - i, 0.0f));
    low += high;
    double total = 0.0;
    for (int lane = 0; lane < W / 2; ++lane) total += low[lane];
    return total;
}

inline int count_above(const float* x, int n, float value) {
    const vf level = splat(value);
    vi even = {}, odd = {};  // of -1 for each
    int i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
        even += load(x + i) > level;
        odd += load(x + i + W) > level;
    }
    for (; i + W <= n; i += W) even += load(x + i) > level;
    if (i < n) even += load_part(x + i, n - i, minus_infinity()) > level;
    even += odd;
    int count = 0;
    for (int lane = 0; lane < W; ++lane) count -= even[lane];
    return count;
}

// Writes first + lane for each bit that is set, behind the `num` places that are there, and one place too many.
OCTAVO_INLINE int append(std::int32_t* places, int num, int first, std::uint32_t bits) {
    for (int lane = 0; lane < W; ++lane) {  // no branch for each hit: they come at random
        places[num] = first + lane;
        num += (bits >> lane) & 1;
    }
    return num;
}

// The places, in order, of the values in [low, high]. `places` has room for n + 1.
inline int collect(const float* x, int n, float low, float high, std::int32_t* places) {
    const vf least = splat(low), most = splat(high);
    const auto find = [&](vf v) __attribute__((always_inline)) { return bits_of((v >= least) & (v <= most)); };
    int num = 0, i = 0;
    for (; i + W <= n; i += W) {
        const std::uint32_t bits = find(load(x + i));
        if (bits != 0) num = append(places, num, i, bits);
    }
    if (i < n) num = append(places, num, i, find(load_part(x + i, n - i, __builtin_nanf(""))));
    return num;
}

}  // namespace
