// A stand-in for the tile registers of AMX, bit for bit. See simd/amx_tiles.h for what each function does. A processor
// that has them stops at products of tiles that do not fit together; so does this.
#pragma once

#include "simd/dot_bf16.h"
#include "simd/vec.h"

namespace {

constexpr int kTileRows = 16, kTileInputs = 32;
constexpr int kTileColumns = 32;

struct TileRegister {
    int rows, bytes_per_row;
    alignas(64) char bytes[kTileRows][64];
};

OCTAVO_INLINE TileRegister& tile(int number) {
    static thread_local TileRegister tiles[8];
    return tiles[number];
}

// Configures one register, which becomes zeros.
OCTAVO_INLINE void configure_tile(int number, int rows, int bytes_per_row) {
    std::memset(&tile(number), 0, sizeof(TileRegister));
    tile(number).rows = rows, tile(number).bytes_per_row = bytes_per_row;
}

OCTAVO_INLINE void configure(int rows, int more, int depth) {
    const int counts[8] = {rows, rows, more, more, rows, more, depth / 4, depth / 4};
    for (int i = 0; i < 8; ++i) configure_tile(i, counts[i] > 0 ? counts[i] : 1, i == 4 || i == 5 ? depth : 64);
}

OCTAVO_INLINE void configure_rows(const int (&rows)[8]) {
    for (int i = 0; i < 8; ++i) configure_tile(i, rows[i], 64);
}

template <int kTile>
OCTAVO_INLINE void tile_zero() { std::memset(tile(kTile).bytes, 0, sizeof tile(kTile).bytes); }

template <int kTile>
OCTAVO_INLINE void tile_load(const void* from, std::int64_t stride) {
    TileRegister& to = tile(kTile);
    const auto size = static_cast<std::size_t>(to.bytes_per_row);
    std::memset(to.bytes, 0, sizeof to.bytes);
    for (int row = 0; row < to.rows; ++row)
        std::memcpy(to.bytes[row], static_cast<const char*>(from) + row * stride, size);
}

template <int kTile>
OCTAVO_INLINE void tile_store(void* to, std::int64_t stride) {
    const TileRegister& from = tile(kTile);
    const auto size = static_cast<std::size_t>(from.bytes_per_row);
    for (int row = 0; row < from.rows; ++row)
        std::memcpy(static_cast<char*>(to) + row * stride, from.bytes[row], size);
}

OCTAVO_INLINE void check_shapes(const TileRegister& sums, const TileRegister& a, const TileRegister& b) {
    if (sums.rows != a.rows || sums.bytes_per_row != b.bytes_per_row || a.bytes_per_row != 4 * b.rows) __builtin_trap();
}

// sums + the products of up to 32 inputs: the even and the odd ones add up by themselves, then both to each other.
// a: pairs of inputs of one row; b: [pairs][columns] in rows of 64 bytes.
inline __attribute__((noinline)) void add_products(float* sums, const void* a, const void* b, int pairs) {
    const FlushDenormals flush;
    vf even{}, odd{};
    for (int i = 0; i < pairs; ++i) {
        const vu x = splat_word(load_as<std::uint32_t>(static_cast<const char*>(a) + 4 * i));
        const vu w = load_as<vu>(static_cast<const char*>(b) + 64 * i);
        even = fma_flushed(lower(x), lower(w), even);
        odd = fma_flushed(upper(x), upper(w), odd);
    }
    store(sums, add_flushed(load(sums), add_flushed(even, odd)));
}

template <int kSums, int kLeft, int kRight>
OCTAVO_INLINE void tile_products_bf16() {
    TileRegister& sums = tile(kSums);
    check_shapes(sums, tile(kLeft), tile(kRight));
    const auto size = static_cast<std::size_t>(sums.bytes_per_row);
    for (int row = 0; row < sums.rows; ++row) {
        float totals[16] = {};
        std::memcpy(totals, sums.bytes[row], size);
        add_products(totals, tile(kLeft).bytes[row], tile(kRight).bytes, tile(kRight).rows);
        std::memcpy(sums.bytes[row], totals, size);
    }
}

template <int kSums, int kLeft, int kRight>
OCTAVO_INLINE void tile_products_int8() {
    TileRegister& sums = tile(kSums);
    check_shapes(sums, tile(kLeft), tile(kRight));
    for (int row = 0; row < sums.rows; ++row)
        for (int column = 0; column < sums.bytes_per_row; column += 4) {
            auto total = load_as<std::int32_t>(sums.bytes[row] + column);
            for (int i = 0; i < tile(kLeft).bytes_per_row; ++i)
                total += static_cast<std::int8_t>(tile(kLeft).bytes[row][i]) *
                         static_cast<std::int8_t>(tile(kRight).bytes[i / 4][column + i % 4]);
            std::memcpy(sums.bytes[row] + column, &total, sizeof total);
        }
}

template <bool kTwo>
OCTAVO_INLINE void zero_sums() {
    tile_zero<0>(), tile_zero<1>();
    if (kTwo) tile_zero<2>(), tile_zero<3>();
}

template <bool kTwo>
OCTAVO_INLINE void store_tiles(std::int32_t* c) {
    tile_store<0>(c, kTileColumns * 4), tile_store<1>(c + 16, kTileColumns * 4);
    if (!kTwo) return;
    c += kTileRows * kTileColumns;
    tile_store<2>(c, kTileColumns * 4), tile_store<3>(c + 16, kTileColumns * 4);
}

template <bool kTwo>
OCTAVO_INLINE void multiply_bytes(const std::int8_t* a, std::int64_t a_stride, const std::int8_t* b, std::int32_t* c) {
    zero_sums<kTwo>();
    tile_load<6>(b, kTileColumns * 4), tile_load<7>(b + 64, kTileColumns * 4);
    tile_load<4>(a, a_stride);
    tile_products_int8<0, 4, 6>(), tile_products_int8<1, 4, 7>();
    if (kTwo) {
        tile_load<5>(a + kTileRows * a_stride, a_stride);
        tile_products_int8<2, 5, 6>(), tile_products_int8<3, 5, 7>();
    }
    store_tiles<kTwo>(c);
}

OCTAVO_INLINE void release() {}

// Nothing is multiplied: no measure of a stand-in means anything.
template <bool kWholeNumbers>
double spin_tiles(std::int64_t rounds) {
    for (std::int64_t round = 0; round < rounds; ++round) __asm__ volatile("");
    return 4.0 * 2 * kTileRows * 16 * (kWholeNumbers ? 64 : kTileInputs) * static_cast<double>(rounds);
}

}  // namespace
