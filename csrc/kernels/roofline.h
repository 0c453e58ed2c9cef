// The machine's own limits, for comparison: a bare read of memory, and products that never leave the registers.
#pragma once

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

// A tile of products as wide as `run_tile` uses, without its loads. Returns the floating-point operations done.
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
