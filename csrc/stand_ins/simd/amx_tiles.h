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

template <bool kTwo>
OCTAVO_INLINE void multiply(const std::uint16_t* a, std::int64_t a_stride, const std::uint32_t* b, int steps,
                            float* c) {
    const int rows = kTwo ? kTileRows + configured().second : configured().first;
    for (int row = 0; row < rows; ++row)
        for (int column = 0; column < kTileColumns; ++column) {
            float total = 0.0f;
            for (int i = 0; i < steps * kTileInputs; ++i) {
                const std::uint32_t pair = b[i / 2 * kTileColumns + column];
                const auto weight = static_cast<std::uint16_t>(pair >> (16 * (i % 2)));
                total = fma1(widen(a[row * a_stride + i]), widen(weight), total);
            }
            c[row * kTileColumns + column] = total;
        }
}

// --- whole numbers ----------------------------------------------------------------------------------------------

template <int kSlot>
OCTAVO_INLINE void sum_group(const std::int8_t* a, std::int64_t a_stride, const std::int8_t* b, std::int32_t* sums) {
    for (int row = 0; row < configured().first; ++row)
        for (int column = 0; column < 16; ++column) {
            std::int32_t total = 0;
            for (int i = 0; i < configured().depth; ++i)
                total += a[row * a_stride + i] * b[i / 4 * kTileColumns * 4 + column * 4 + i % 4];
            sums[row * 16 + column] = total;
        }
}

OCTAVO_INLINE void before_tile_loads() {}

OCTAVO_INLINE void release() {}

// Nothing is multiplied: no measure of a stand-in means anything.
double spin_tiles(std::int64_t rounds) {
    for (std::int64_t round = 0; round < rounds; ++round) __asm__ volatile("");
    return 4.0 * 2 * kTileRows * 16 * kTileInputs * static_cast<double>(rounds);
}

}  // namespace
