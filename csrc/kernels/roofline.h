// The machine's own limits, for comparison: a bare read of memory, and products that never leave the registers.
#pragma once

#include "simd/dot.h"
#include "simd/tile.h"

namespace {

// Reads every byte (num_bytes a multiple of 16 vectors) and adds the words up, so that nothing can be left out.
std::uint32_t read_bytes(const void* from, std::int64_t num_bytes) {
    constexpr int kStreams = 8;
    const auto* words = static_cast<const std::uint32_t*>(from);
    vu sums[kStreams] = {};
    for (std::int64_t i = 0; i + kStreams * W <= num_bytes / 4; i += kStreams * W)
#pragma GCC unroll 8
        for (int s = 0; s < kStreams; ++s) sums[s] += load_as<vu>(words + i + s * W);
    std::uint32_t total = 0;
    for (int s = 0; s < kStreams; ++s)
        for (int lane = 0; lane < W; ++lane) total += sums[s][lane];
    return total;
}

// Numbers for products: bytes of either sign, pairs of bfloat16 about 1. Zeros would take less power, and the clock be
// higher. `forget` them in every round, else the compiler would multiply once.
OCTAVO_INLINE void some_numbers(vf& w, vf& x) {
    w = (vf)(splat_word(0x3f81bf93u) + (vu)lane_numbers());
    x = (vf)splat_word(0x3fa5bf3cu);
}

// Dot products of signed bytes, as of codes of 8 bits, or of unsigned ones, as of codes of 4. The sums are as many as
// hide their latency.
template <bool kNibbles>
double spin_codes(std::int64_t rounds) {
    constexpr int kSums = 10;
    vi sums[kSums];
#pragma GCC unroll 10
    for (int i = 0; i < kSums; ++i) sums[i] = vi{} + i;  // each its own, else one would do
    vf w, x;
    some_numbers(w, x);
#pragma GCC unroll 1
    for (std::int64_t round = 0; round < rounds; ++round) {
        forget(w, x);
#pragma GCC unroll 10
        for (int i = 0; i < kSums; ++i) {
            if constexpr (kNibbles)
                add_nibbles(sums[i], (vi)w, (vi)x);
            else
                add_bytes(sums[i], {(vi)w, (vi)w}, (vi)x);
        }
    }
    vf total = splat(0.0f);
#pragma GCC unroll 10
    for (int i = 0; i < kSums; ++i) total = total + __builtin_convertvector(sums[i], vf);
    volatile float kept = sum(total);
    (void)kept;
    return 8.0 * kSums * W * static_cast<double>(rounds);
}

// A tile of float32 products as wide as `run_tile` uses, without its loads.
double spin_fma(std::int64_t rounds) {
    constexpr int kSums = 12;
    vf sums[kSums];
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) sums[i] = splat(static_cast<float>(i));
    vf x = splat(0.999f), y = splat(1e-3f);
    for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
        for (int i = 0; i < kSums; ++i) sums[i] = fma(sums[i], x, y);
        // Without this the compiler would see that all sums go the same way.
        forget(x, y);
    }
    vf total = sums[0];
    for (int i = 1; i < kSums; ++i) total = total + sums[i];
    volatile float kept = sum(total);
    (void)kept;
    return 2.0 * kSums * W * static_cast<double>(rounds);
}

}  // namespace
