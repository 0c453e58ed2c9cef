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

template <bool kTwo>
OCTAVO_INLINE void multiply(const std::uint16_t* a, std::int64_t a_stride, const std::uint32_t* b, int steps,
                            float* c) {
    _tile_zero(0);
    _tile_zero(1);
    if (kTwo) {
        _tile_zero(2);
        _tile_zero(3);
    }
    const std::uint16_t* below = a + kTileRows * a_stride;
    for (int step = 0; step < steps; ++step) {
        _tile_loadd(6, b, kTileColumns * 4);
        _tile_loadd(7, b + 16, kTileColumns * 4);
        _tile_loadd(4, a, a_stride * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (kTwo) {
            _tile_loadd(5, below, a_stride * 2);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        a += kTileInputs, below += kTileInputs, b += kTileInputs / 2 * kTileColumns;
    }
    _tile_stored(0, c, kTileColumns * 4);
    _tile_stored(1, c + 16, kTileColumns * 4);
    if (kTwo) {
        _tile_stored(2, c + kTileRows * kTileColumns, kTileColumns * 4);
        _tile_stored(3, c + kTileRows * kTileColumns + 16, kTileColumns * 4);
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

// Single operations on the tile registers, for kernels that say themselves what lies in which. Loads and stores name
// memory as touched, so that the compiler leaves what is stored in front of a load there (gcc's own intrinsic does not).
namespace {

// Rows of 64 bytes: `rows[i]` of tile register i.
OCTAVO_INLINE void configure_rows(const int (&rows)[8]) {
    TileConfig config;
    for (int i = 0; i < 8; ++i) {
        config.rows[i] = static_cast<std::uint8_t>(rows[i]);
        config.bytes_per_row[i] = 64;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
}

template <int kTile>
OCTAVO_INLINE void zero_tile() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

// Rows of 64 bytes that begin `stride` bytes apart.
template <int kTile>
OCTAVO_INLINE void load_tile(const void* from, std::int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
OCTAVO_INLINE void store_tile(void* to, std::int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
}

// Sums + rows times columns, in bfloat16: kRows holds [rows, 32 inputs], kColumns [16 pairs of inputs, 16 columns, 2].
template <int kSums, int kRows, int kColumns>
OCTAVO_INLINE void add_pairs() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kRows), "i"(kColumns));
}

}  // namespace
