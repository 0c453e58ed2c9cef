// Products by the tile registers of AMX: of one or two tiles of rows with two tiles of columns.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "simd/vec.h"

namespace {

constexpr int kTileRows = 16, kTileInputs = 32;
constexpr int kTileColumns = 32;  // of the two tiles of weights that are side by side

// Tile registers 0..3: sums (two tiles of rows by two of columns); 4, 5: inputs; 6, 7: weights.
struct alignas(64) TileConfig {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t bytes_per_row[16] = {};
    std::uint8_t rows[16] = {};
};

// `rows` of the first, `more` of the second tile of rows (0: there is none), `depth` bytes of inputs.
OCTAVO_INLINE void configure(int rows, int more, int depth) {
    TileConfig config;
    const int counts[8] = {rows, rows, more, more, rows, more, depth / 4, depth / 4};
    for (int i = 0; i < 8; ++i) {
        config.rows[i] = static_cast<std::uint8_t>(counts[i] > 0 ? counts[i] : 1);
        config.bytes_per_row[i] = static_cast<std::uint16_t>(i == 4 || i == 5 ? depth : 64);
    }
    // An "m" operand: gcc 12 drops the stores that fill the configuration in front of its own intrinsic.
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
}

// Tiles of input rows as `multiply` takes them: step s's tile [rows, kTileInputs] at `at` + s * step.
struct TileInputs {
    const std::uint16_t* at;
    std::int64_t step;
};

// Where a tile's sums go, and what is asked for meanwhile: at each step `lines` lines from `ahead` on.
struct TileOutputs {
    float* sums;
    std::int64_t stride;
    bool asks_for_sums;  // the lines of `sums` lie far apart, and not in a cache
    const char* ahead;
    int lines;
};

// A tile of rows (kTwo: two) times two tiles of columns, `steps` times kTileInputs inputs deep.
template <bool kTwo>
OCTAVO_INLINE void multiply(TileInputs a, TileInputs below, const std::uint32_t* b, int steps, TileOutputs to) {
    _tile_zero(0);
    _tile_zero(1);
    if (kTwo) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int step = 0; step < steps; ++step) {
        _tile_loadd(6, b, kTileColumns * 4);
        _tile_loadd(7, b + 16, kTileColumns * 4);
        _tile_loadd(4, a.at, kTileInputs * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (kTwo) {
            _tile_loadd(5, below.at, kTileInputs * 2);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        for (int line = 0; line < to.lines; ++line, to.ahead += 64) _mm_prefetch(to.ahead, _MM_HINT_T1);
        if (kTwo && to.asks_for_sums && step < kTileRows) {
            const float* row = to.sums + step * to.stride;
            const float* lower = row + kTileRows * to.stride;
            _m_prefetchw(const_cast<float*>(row)), _m_prefetchw(const_cast<float*>(row + 16));
            _m_prefetchw(const_cast<float*>(lower)), _m_prefetchw(const_cast<float*>(lower + 16));
        }
        a.at += a.step, below.at += below.step, b += kTileInputs / 2 * kTileColumns;
    }
    const std::int64_t bytes = to.stride * 4;
    _tile_stored(0, to.sums, bytes);
    _tile_stored(1, to.sums + 16, bytes);
    if (kTwo) {
        _tile_stored(2, to.sums + kTileRows * to.stride, bytes);
        _tile_stored(3, to.sums + kTileRows * to.stride + 16, bytes);
    }
}

// Integer sums [rows, kTileColumns] of one group, of signed bytes.
template <bool kTwo>
OCTAVO_INLINE void multiply_bytes(const std::int8_t* a, std::int64_t a_stride, const std::int8_t* b, std::int32_t* c) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_loadd(6, b, kTileColumns * 4);
    _tile_loadd(7, b + 64, kTileColumns * 4);
    _tile_loadd(4, a, a_stride);
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_stored(0, c, kTileColumns * 4);
    _tile_stored(1, c + 16, kTileColumns * 4);
    if (kTwo) {
        _tile_zero(2);
        _tile_zero(3);
        _tile_loadd(5, a + kTileRows * a_stride, a_stride);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
        _tile_stored(2, c + kTileRows * kTileColumns, kTileColumns * 4);
        _tile_stored(3, c + kTileRows * kTileColumns + 16, kTileColumns * 4);
    }
}

OCTAVO_INLINE void release() { _tile_release(); }

double spin_tiles(std::int64_t rounds) {
    configure(kTileRows, kTileRows, 64);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (std::int64_t round = 0; round < rounds; ++round) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    release();
    return 4.0 * 2 * kTileRows * 16 * kTileInputs * static_cast<double>(rounds);
}

}  // namespace
