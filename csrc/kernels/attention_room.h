// The sizes of attention on tiles (attention_tiles.h), and the scratch memory of one call of it.
#pragma once

#include "kernels/attention.h"

namespace {

static_assert(W == kTileRows, "a row of a tile is a vector");

constexpr int kSpanKeys = 64;
constexpr int kBandRows = kTileRows;
constexpr int kKeyTiles = kSpanKeys / 16, kWeightTiles = kSpanKeys / kTileInputs;  // of a band and a span
constexpr int kTileWords = kTileRows * kTileInputs;  // bfloat16 of a tile
constexpr int kTileFloats = kTileRows * 16;
constexpr int kTileRunRows = 7 * kBandRows;  // that share what is brought together of the values
constexpr int kKeyColumns = kSpanKeys + W;  // of keys that are copied: vectors are stored past the end

// The scratch memory of a call.
struct TileRoom {
    std::uint16_t* queries;  // [tiles of rows][tiles of dimensions][16][32]
    float* sums;  // [tiles of rows][tiles of dimensions][16][16]: dimensions as `interleave` leaves them
    float* totals;  // [rows][16]: a row's weights, in lanes
    float* largest;  // [rows]
    float* scores[2];  // [band's rows][kSpanKeys]
    std::uint16_t* weights[2];  // [tiles of 32 keys][16][32]
    float* factors[2];  // [band's rows]: what its sums are multiplied with when the piece's weights are added
    std::uint16_t* values;  // [tiles of 32 keys][tiles of dimensions][16 pairs][16][2]
    std::uint32_t* keys;  // [pairs of dimensions][kKeyColumns], where keys are copied
    float* peaks;  // [16][16]: the maxima of rows, in lanes
    float* bases;  // [16]
    float* scales;  // of the span's keys, then of its values
    std::uint16_t* ends;  // [2][32]: the last dimensions of two values, padded with zeros
    std::uint16_t* zeros;  // a value
    std::int64_t num_floats;
};

// Laid out in lines of 64 bytes; null: only how much it is.
OCTAVO_INLINE TileRoom tile_room(float* from, int count, int head_dim) {
    const std::int64_t rows = round_up(count, kBandRows), dim = round_up(head_dim, kTileInputs);
    std::int64_t used = (64 - reinterpret_cast<std::uintptr_t>(from) % 64) % 64 / sizeof(float);
    const auto floats = [&](std::int64_t n) -> float* {
        float* taken = from == nullptr ? nullptr : from + used;
        used += (n + 15) / 16 * 16;
        return taken;
    };
    const auto words = [&](std::int64_t n) { return reinterpret_cast<std::uint16_t*>(floats((n + 1) / 2)); };
    TileRoom room{};
    room.queries = words(rows * dim);
    room.sums = floats(rows * dim);
    room.totals = floats(rows * 16);
    room.largest = floats(rows);
    for (int place = 0; place < 2; ++place) {
        room.scores[place] = floats(kBandRows * kSpanKeys);
        room.weights[place] = words(kBandRows * kSpanKeys);
        room.factors[place] = floats(kBandRows);
    }
    room.values = words(kSpanKeys * dim);
    room.keys = reinterpret_cast<std::uint32_t*>(floats(dim / 2 * kKeyColumns));
    room.peaks = floats(16 * 16);
    room.bases = floats(16);
    room.scales = floats(2 * kSpanKeys + W);
    room.ends = words(2 * kTileInputs);
    room.zeros = words(dim);
    room.num_floats = used + 15;  // the memory may begin between lines
    return room;
}

}  // namespace
