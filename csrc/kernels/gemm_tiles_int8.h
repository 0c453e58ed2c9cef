// Products of whole numbers by tile registers: exact sums of a group, so the bits are those of gemm_int8.h, which serves
// where there are few rows.
//
// A tile of sums is worth as many instructions as it takes to scale and add it up, so everything else is made ready once
// for all rows: scales in float32, codes as bytes. Totals of 16 rows by 16 columns stay in registers.
#pragma once

#include "kernels/gemm_int8.h"
#include "kernels/kernels.h"

namespace {

static_assert(kCodeBlockRows == kTileRows && W == 16, "a tile is a block of rows by a vector of columns");

constexpr int kFewRows = 8;  // less than so many fill too little of a tile
constexpr int kRunInputs = 1024;  // that are made ready at a time
// Groups between a product and the use of its sums: what a tile has stored cannot be read at once.
constexpr int kLag = 2;
constexpr int kRing = 4;

// Some groups of a panel, ready for tiles.
template <Format kFormat, bool kMins>
struct ReadyGroups {
    using Shape = GroupShape<kFormat>;
    static constexpr int kMost = kRunInputs / Shape::kGroup;
    static constexpr bool kUnpacks = Shape::kBits < 8;
    static_assert(kRunInputs % super_block_inputs(kFormat) == 0 && Shape::kGroup <= 64);

    alignas(64) float scales[kMost][kPanel], mins[kMins ? kMost : 1][kPanel];
    alignas(64) std::int8_t bytes[kUnpacks ? kMost : 1][Shape::kGroup * kPanel];
    const std::int8_t* codes[kMost];
    int num_groups = 0;
    int first_group = 0;  // of the rows' inputs

    template <class Source>
    void add(const SuperBlock& block, const Source& stored, const Source& stored_mins) {
        for (int i = 0; i < block.num_groups; ++i, ++num_groups) {
            for (int v = 0; v < kPanel; v += W) store(scales[num_groups] + v, stored.at(i, v));
            if constexpr (kMins)
                for (int v = 0; v < kPanel; v += W) store(mins[num_groups] + v, stored_mins.at(i, v));
            codes[num_groups] = bytes_of(block.codes + i * Shape::kGroupBytes, bytes[kUnpacks ? num_groups : 0]);
        }
    }

private:
    // A group's codes as signed bytes: themselves, or both halves of each byte.
    static OCTAVO_INLINE const std::int8_t* bytes_of(const char* from, std::int8_t* to) {
        if constexpr (!kUnpacks) return reinterpret_cast<const std::int8_t*>(from);
        typedef std::int8_t vb __attribute__((vector_size(4 * W)));
        constexpr int kHalf = Shape::kGroup / 2 * kPanel;
        constexpr auto kExcess = static_cast<std::int8_t>(kMins ? 0 : Shape::kTraits.excess);
        for (int i = 0; i < kHalf; i += W * 4) {
            const vu words = load_as<vu>(from + i), low_half = splat_word(0x0f0f0f0fu);
            const vb low = (vb)(words & low_half) - kExcess, high = (vb)(words >> 4 & low_half) - kExcess;
            std::memcpy(to + i, &low, sizeof low);
            std::memcpy(to + kHalf + i, &high, sizeof high);
        }
        return to;
    }
};

// Scales and shifts of a block's rows: those of group g at scales + g * step, the shifts kTileRows behind.
struct RowScales {
    const float* scales;
    int step;
};

// A whole block's as they lie. Of fewer rows copies, with zeros for those that a tile has none of: whatever else stood
// there could be numbers that the processor is slow with.
template <int kMostGroups>
struct CopiedScales {
    alignas(64) float copies[kMostGroups][2][kTileRows];

    RowScales of(const RowsOfBlock& rows, int num_groups, int group_len) {
        if (rows.count == kTileRows)
            return {reinterpret_cast<const float*>(rows.headers), kTileRows * static_cast<int>(sizeof(GroupHeader) / 4)};
        RowsOfBlock at = rows;
        for (int group = 0; group < num_groups; ++group, at.skip_groups(1, group_len))
            for (int m = 0; m < kTileRows; ++m) {
                copies[group][0][m] = m < rows.count ? at.scale(m) : 0.0f;
                copies[group][1][m] = m < rows.count ? at.shift(m) : 0.0f;
            }
        return {copies[0][0], 2 * kTileRows};
    }
};

// Integer sums [kTileRows, W] of one group. kSlot 0 and 1 have registers of their own, to be used in turns.
template <int kSlot>
OCTAVO_INLINE void sum_group(const std::int8_t* a, std::int64_t a_stride, const std::int8_t* b, std::int32_t* sums) {
    tile_zero<kSlot>();
    tile_load<6 + kSlot % 2>(b, kPanel * 4);
    tile_load<4 + kSlot % 2>(a, a_stride);
    tile_products_int8<kSlot, 4 + kSlot % 2, 6 + kSlot % 2>();
    tile_store<kSlot>(sums, W * 4);
}

// Where the sums of a tile go, and what is asked for meanwhile: with each group `lines` lines from `ahead` on.
struct SumsOfTile {
    float* at;
    std::int64_t stride;
    bool continues;
    const char* ahead;
    int lines;
};

// 16 columns of a block of rows: sums += all groups that are ready.
template <Format kFormat, bool kMins>
inline __attribute__((noinline)) void add_tile(const ReadyGroups<kFormat, kMins>& ready, int column,
                                               const RowsOfBlock& rows, RowScales row_scales, SumsOfTile sums) {
    using Shape = GroupShape<kFormat>;
    alignas(64) std::int32_t ring[kRing][kTileRows][W];
    vf totals[kTileRows];
#pragma GCC unroll 16
    for (int m = 0; m < kTileRows; ++m)
        totals[m] = sums.continues && m < rows.count ? load(sums.at + m * sums.stride) : splat(0.0f);
    const std::int64_t group_bytes = std::int64_t{rows.count} * Shape::kInputs;
    const auto multiply = [&](int group) __attribute__((always_inline)) {
        const std::int8_t* a = rows.codes + group / Shape::kParts * group_bytes + group % Shape::kParts * Shape::kGroup;
        const std::int8_t* b = ready.codes[group] + column * 4;
        std::int32_t* to = ring[group % kRing][0];
        switch (group % 4) {
            case 0: return sum_group<0>(a, Shape::kInputs, b, to);
            case 1: return sum_group<1>(a, Shape::kInputs, b, to);
            case 2: return sum_group<2>(a, Shape::kInputs, b, to);
            case 3: return sum_group<3>(a, Shape::kInputs, b, to);
        }
    };
    const auto take = [&](int group) __attribute__((always_inline)) {
        const vf scales = load(ready.scales[group] + column);
        const vf mins = kMins ? load(ready.mins[kMins ? group : 0] + column) : vf{};
        const float* own = row_scales.scales + group / Shape::kParts * row_scales.step;
        const std::int32_t* exact = ring[group % kRing][0];
#pragma GCC unroll 16
        for (int m = 0; m < kTileRows; ++m)
            totals[m] = plus_scaled<kMins>(totals[m], load_as<vi>(exact + m * W), scales, mins, splat(own[m]),
                                           kMins ? splat(own[kTileRows + m]) : vf{});
    };
    const int num_groups = ready.num_groups, lag = num_groups < kLag ? num_groups : kLag;
    for (int group = 0; group < lag; ++group) multiply(group);
    for (int group = 0; group < num_groups; ++group) {
        if (group + lag < num_groups) multiply(group + lag);
        for (int line = 0; line < sums.lines; ++line, sums.ahead += 64) __builtin_prefetch(sums.ahead, 0, 2);
        take(group);
    }
#pragma GCC unroll 16
    for (int m = 0; m < kTileRows; ++m)
        if (m < rows.count) store(sums.at + m * sums.stride, totals[m]);
}

// `ahead`: lines that are asked for while a group is taken up.
template <Format kFormat, bool kMins>
void add_tiles(const ProductArgs& args, const ReadyGroups<kFormat, kMins>& ready, const char* ahead, int lines) {
    constexpr int kInputs = GroupShape<kFormat>::kInputs;
    CopiedScales<kRunInputs / kInputs> copied;
    int configured_rows = 0;
    for (int row = 0; row < args.num_rows; row += kTileRows) {
        const RowsOfBlock rows = rows_from<kFormat>(args, row, ready.first_group);
        if (rows.count != configured_rows) configure(rows.count, rows.count, GroupShape<kFormat>::kGroup);
        configured_rows = rows.count;
        const RowScales row_scales = copied.of(rows, ready.num_groups / GroupShape<kFormat>::kParts, kInputs);
        for (int column = 0; column < kPanel; column += W, ahead += std::int64_t{64} * lines * ready.num_groups)
            add_tile(ready, column, rows, row_scales,
                     {args.scratch + row * args.stride + column, args.stride, ready.first_group > 0, ahead, lines});
    }
}

template <Format kFormat>
void product_codes_tiles(const ProductArgs& args) {
    if (args.num_rows < kFewRows) return product_codes<kFormat>(args);
    const int tiles = (args.num_rows + kTileRows - 1) / kTileRows * (kPanel / W);
    const std::int64_t all_groups = std::int64_t{tiles} * (args.padded_in / GroupShape<kFormat>::kGroup);
    const int lines = static_cast<int>((args.ahead_bytes / 64 + all_groups - 1) / all_groups);
    const char* ahead = args.ahead;
    with_flags<kFormat>(args.panel.kind, [&](auto has_mins, auto has_sub_scales) {
        constexpr bool kMins = decltype(has_mins)::value, kSubScales = decltype(has_sub_scales)::value;
        ReadyGroups<kFormat, kMins> ready;
        const auto add_ready = [&] {
            add_tiles(args, ready, ahead, lines);
            ahead += std::int64_t{64} * lines * tiles * ready.num_groups;
            ready.num_groups = 0;
        };
        each_super_block<kFormat, kMins, kSubScales>(
            args.panel, args.padded_in, false,
            [&](const SuperBlock& block, int group, auto stored, auto stored_mins) {
                if (ready.num_groups == 0) ready.first_group = group;
                ready.add(block, stored, stored_mins);
                if (ready.num_groups == ready.kMost) add_ready();
            });
        if (ready.num_groups > 0) add_ready();
    });
    release();
}

}  // namespace
