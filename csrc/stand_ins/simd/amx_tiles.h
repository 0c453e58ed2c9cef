// A stand-in for the tile registers of AMX: loops over numbers. See simd/amx_tiles.h for what each function does.
#pragma once

#include "simd/vec.h"

namespace {

constexpr int kTileRows = 16, kTileInputs = 32;
constexpr int kTileColumns = 32;

struct TileRows { int first, second, depth; };

OCTAVO_INLINE TileRows& configured() {
    static thread_local TileRows rows;
    return rows;
}

OCTAVO_INLINE void configure(int rows, int more, int depth) { configured() = {rows, more, depth}; }

struct TileInputs {
    const std::uint16_t* at;
    std::int64_t step;
};

struct TileOutputs {
    float* sums;
    std::int64_t stride;
    bool asks_for_sums;
    const char* ahead;
    int lines;
};

// Sums of one tile of rows.
OCTAVO_INLINE void multiply_tile(TileInputs a, int rows, const std::uint32_t* b, int steps, float* c,
                                 std::int64_t stride) {
    for (int row = 0; row < rows; ++row)
        for (int column = 0; column < kTileColumns; ++column) {
            float total = 0.0f;
            for (int i = 0; i < steps * kTileInputs; ++i) {
                const std::uint32_t pair = b[i / 2 * kTileColumns + column];
                const auto weight = static_cast<std::uint16_t>(pair >> (16 * (i % 2)));
                const std::uint16_t x = a.at[i / kTileInputs * a.step + row * kTileInputs + i % kTileInputs];
                total = fma1(widen(x), widen(weight), total);
            }
            c[row * stride + column] = total;
        }
}

template <bool kTwo>
OCTAVO_INLINE void multiply(TileInputs a, TileInputs below, const std::uint32_t* b, int steps, TileOutputs to) {
    multiply_tile(a, configured().first, b, steps, to.sums, to.stride);
    if (kTwo) multiply_tile(below, configured().second, b, steps, to.sums + kTileRows * to.stride, to.stride);
}

template <bool kTwo>
OCTAVO_INLINE void multiply_bytes(const std::int8_t* a, std::int64_t a_stride, const std::int8_t* b, std::int32_t* c) {
    const int rows = kTwo ? kTileRows + configured().second : configured().first;
    for (int row = 0; row < rows; ++row)
        for (int column = 0; column < kTileColumns; ++column) {
            std::int32_t total = 0;
            for (int i = 0; i < configured().depth; ++i)
                total += a[row * a_stride + i] * b[i / 4 * kTileColumns * 4 + column * 4 + i % 4];
            c[row * kTileColumns + column] = total;
        }
}

OCTAVO_INLINE void release() {}

// Nothing is multiplied: no measure of a stand-in means anything.
double spin_tiles(std::int64_t rounds) {
    for (std::int64_t round = 0; round < rounds; ++round) __asm__ volatile("");
    return 4.0 * 2 * kTileRows * 16 * kTileInputs * static_cast<double>(rounds);
}

}  // namespace
