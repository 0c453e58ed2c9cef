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

// Rows of 64 bytes: `rows[i]` of tile register i.
OCTAVO_INLINE void configure_rows(const int (&rows)[8]) {
    TileConfig config;
    for (int i = 0; i < 8; ++i) {
        config.rows[i] = static_cast<std::uint8_t>(rows[i]);
        config.bytes_per_row[i] = 64;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
}

// The instructions, each on registers by number. gcc 12's own intrinsic for a load does not say that it reads memory, so
// that stores which fill what is loaded may be moved behind it or dropped; these say so.
template <int kTile>
OCTAVO_INLINE void tile_zero() { __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile)); }

template <int kTile>
OCTAVO_INLINE void tile_load(const void* from, std::int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
OCTAVO_INLINE void tile_store(void* to, std::int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
}

// Sums of float32 += left [rows, pairs of inputs] x right [pairs of inputs, columns], both of bfloat16.
template <int kSums, int kLeft, int kRight>
OCTAVO_INLINE void tile_products_bf16() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kLeft), "i"(kRight));
}

// Sums of int32 += left [rows, fours of inputs] x right [fours of inputs, columns], both of signed bytes.
template <int kSums, int kLeft, int kRight>
OCTAVO_INLINE void tile_products_int8() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kLeft), "i"(kRight));
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

// Products of tiles that stay in their registers. Of numbers of ordinary size: zeros take less power, and are a fifth
// faster.
template <bool kWholeNumbers>
double spin_tiles(std::int64_t rounds) {
    alignas(64) std::uint16_t words[4][kTileRows * kTileInputs];
    std::uint32_t random = 1;
    for (auto& tile : words)
        for (std::uint16_t& word : tile) {
            random = random * 1664525u + 1013904223u;
            // Two signed bytes, or a bfloat16 between 1/2 and 2 of either sign.
            word = static_cast<std::uint16_t>(kWholeNumbers ? random >> 16 : 0x3f00u | (random >> 16 & 0x80ffu));
        }
    configure(kTileRows, kTileRows, 64);
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
    tile_load<4>(words[0], 64), tile_load<5>(words[1], 64), tile_load<6>(words[2], 64), tile_load<7>(words[3], 64);
    for (std::int64_t round = 0; round < rounds; ++round) {
        if constexpr (kWholeNumbers) {
            tile_products_int8<0, 4, 6>(), tile_products_int8<1, 4, 7>();
            tile_products_int8<2, 5, 6>(), tile_products_int8<3, 5, 7>();
        } else {
            tile_products_bf16<0, 4, 6>(), tile_products_bf16<1, 4, 7>();
            tile_products_bf16<2, 5, 6>(), tile_products_bf16<3, 5, 7>();
        }
    }
    release();
    return 4.0 * 2 * kTileRows * 16 * (kWholeNumbers ? 64 : kTileInputs) * static_cast<double>(rounds);
}

}  // namespace
