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

// Single operations on the tile registers. Sums are those of the processor, bit for bit: in every output, 32 inputs
// make two chains of fused products, of the even and of the odd ones, which are added up first; denormal numbers are
// zeros.
#include <immintrin.h>

namespace {

struct TileRegister {
    std::uint32_t words[kTileRows][16];
};

OCTAVO_INLINE TileRegister& tile_register(int number) {
    static thread_local TileRegister registers[8];
    return registers[number];
}

OCTAVO_INLINE int& rows_of_tile(int number) {
    static thread_local int rows[8];
    return rows[number];
}

OCTAVO_INLINE void configure_rows(const int (&rows)[8]) {
    for (int i = 0; i < 8; ++i) rows_of_tile(i) = rows[i];
}

template <int kTile>
OCTAVO_INLINE void zero_tile() {
    tile_register(kTile) = {};
}

template <int kTile>
OCTAVO_INLINE void load_tile(const void* from, std::int64_t stride) {
    tile_register(kTile) = {};
    for (int row = 0; row < rows_of_tile(kTile); ++row)
        std::memcpy(tile_register(kTile).words[row], static_cast<const char*>(from) + row * stride, 64);
}

template <int kTile>
OCTAVO_INLINE void store_tile(void* to, std::int64_t stride) {
    for (int row = 0; row < rows_of_tile(kTile); ++row)
        std::memcpy(static_cast<char*>(to) + row * stride, tile_register(kTile).words[row], 64);
}

// Not inline, so that nothing of it is moved out from between the changes of the processor's mode.
inline __attribute__((noinline)) void add_pairs_to(TileRegister& sums, const TileRegister& rows,
                                                   const TileRegister& columns, int num_rows) {
    static_assert(W == 16, "a row of a tile is a vector");
    for (int row = 0; row < num_rows; ++row) {
        vf even = splat(0.0f), odd = splat(0.0f), c;
        std::memcpy(&c, sums.words[row], sizeof c);
        for (int pair = 0; pair < 16; ++pair) {
            const vu a = splat_word(rows.words[row][pair]), b = load_as<vu>(columns.words[pair]);
            even = fma(lower(a), lower(b), even);
            odd = fma(upper(a), upper(b), odd);
        }
        c = c + (even + odd);
        std::memcpy(sums.words[row], &c, sizeof c);
    }
}

template <int kSums, int kRows, int kColumns>
OCTAVO_INLINE void add_pairs() {
    constexpr unsigned kFlushes = 0x8040;  // denormal numbers, on the way in and out
    const unsigned mode = _mm_getcsr();
    _mm_setcsr(mode | kFlushes);
    add_pairs_to(tile_register(kSums), tile_register(kRows), tile_register(kColumns), rows_of_tile(kSums));
    _mm_setcsr(mode);
}

}  // namespace
