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

// Less than so many rows are served faster without tiles: of 4 bits more, which tiles need unpacked.
constexpr int few_rows(int bits) { return bits < 8 ? 8 : 3; }
constexpr int kRunInputs = 1024;  // that are made ready at a time
// Groups on the way: a product takes its time, and what a tile has stored cannot be read at once.
constexpr int kRing = 4;
constexpr int kUnpackedAhead = 8;  // and what vectors have stored a tile cannot load at once

// Some groups of a panel, ready for tiles.
template <Format kFormat, bool kMins>
struct ReadyGroups {
    using Shape = GroupShape<kFormat>;
    static constexpr int kMost = kRunInputs / Shape::kGroup;
    static constexpr bool kUnpacks = Shape::kBits < 8;
    static_assert(kRunInputs % super_block_inputs(kFormat) == 0 && Shape::kGroup <= 64);

    alignas(64) float scales[kMost][kPanel], mins[kMins ? kMost : 1][kPanel];
    alignas(64) std::int8_t bytes[kUnpacks ? kMost : 1][Shape::kGroup * kPanel];
    const char* codes[kMost];  // as they lie
    int num_groups = 0;
    int first_group = 0;  // of the rows' inputs

    template <class Source>
    void add(const SuperBlock& block, const Source& stored, const Source& stored_mins) {
        for (int i = 0; i < block.num_groups; ++i, ++num_groups) {
            for (int v = 0; v < kPanel; v += W) store(scales[num_groups] + v, stored.at(i, v));
            if constexpr (kMins)
                for (int v = 0; v < kPanel; v += W) store(mins[num_groups] + v, stored_mins.at(i, v));
            codes[num_groups] = block.codes + i * Shape::kGroupBytes;
        }
    }

    // A group's codes as signed bytes: themselves, or what `unpack` has made of them.
    OCTAVO_INLINE const std::int8_t* bytes_of(int group) const {
        return kUnpacks ? bytes[group] : reinterpret_cast<const std::int8_t*>(codes[group]);
    }

    // Both halves of each byte.
    OCTAVO_INLINE void unpack(int group) {
        if constexpr (kUnpacks) {
            typedef std::int8_t vb __attribute__((vector_size(4 * W)));
            constexpr int kHalf = Shape::kGroup / 2 * kPanel;
            constexpr auto kExcess = static_cast<std::int8_t>(kMins ? 0 : Shape::kTraits.excess);
            std::int8_t* to = bytes[group];
#pragma GCC unroll 8
            for (int i = 0; i < kHalf; i += W * 4) {
                const vu words = load_as<vu>(codes[group] + i), low_half = splat_word(0x0f0f0f0fu);
                const vb low = (vb)(words & low_half) - kExcess, high = (vb)(words >> 4 & low_half) - kExcess;
                std::memcpy(to + i, &low, sizeof low);
                std::memcpy(to + kHalf + i, &high, sizeof high);
            }
        }
    }
};

// Scales and shifts of a block's rows: those of group g at scales + g * step, the shifts kTileRows behind.
struct RowScales {
    const float* scales;
    int step;
};

// A whole block's as they lie. Of fewer rows copies, with zeros for those that a tile has none of: whatever else stood
// there could be numbers that the processor is slow with. (What is read beyond a group's are numbers of the rows after
// it, for which there is always room.)
template <int kMostGroups>
struct CopiedScales {
    alignas(64) float copies[kMostGroups][2][kTileRows];

    RowScales of(const RowsOfBlock& rows, int num_groups, int group_len) {
        if (rows.count == kTileRows)
            return {reinterpret_cast<const float*>(rows.headers), kTileRows * static_cast<int>(sizeof(GroupHeader) / 4)};
        const vi is_row = lane_numbers() < rows.count;
        RowsOfBlock at = rows;
        for (int group = 0; group < num_groups; ++group, at.skip_groups(1, group_len)) {
            store(copies[group][0], (vf)(load_as<vi>(at.header(0, offsetof(GroupHeader, scale))) & is_row));
            store(copies[group][1], (vf)(load_as<vi>(at.header(0, offsetof(GroupHeader, shift))) & is_row));
        }
        return {copies[0][0], 2 * kTileRows};
    }
};

// Where the sums of a tile go, and what is asked for meanwhile: with each group `lines` lines from `ahead` on.
struct SumsOfTile {
    float* at;
    std::int64_t stride;
    bool continues;
    bool unpacks;  // the first to need the codes
    const char* ahead;
    int lines;
};

template <int kSlot>
struct Slot {
    static constexpr int value = kSlot;
};

// 16 columns of a block of rows: sums += all groups that are ready.
template <Format kFormat, bool kMins>
inline __attribute__((noinline)) void add_tile(ReadyGroups<kFormat, kMins>& ready, int column, const RowsOfBlock& rows,
                                               RowScales row_scales, SumsOfTile sums) {
    using Shape = GroupShape<kFormat>;
    alignas(64) std::int32_t ring[kRing][kTileRows][W];
    // Rows that no tile stores are taken up too, and come to nothing.
    if (rows.count < kTileRows) std::memset(ring, 0, sizeof ring);
    vf totals[kTileRows];
#pragma GCC unroll 16
    for (int m = 0; m < kTileRows; ++m)
        totals[m] = sums.continues && m < rows.count ? load(sums.at + m * sums.stride) : splat(0.0f);
    const std::int64_t group_bytes = std::int64_t{rows.count} * Shape::kInputs;
    const int num_groups = ready.num_groups;
    // The product of a group, and the store of the one before it, by registers kSlot and the one before.
    const auto multiply = [&](auto slot, int group) __attribute__((always_inline)) {
        constexpr int kSlot = decltype(slot)::value, kBefore = (kSlot + kRing - 1) % kRing;
        if (group < num_groups) {
            const int part = group % Shape::kParts;
            tile_zero<kSlot>();
            tile_load<6 + kSlot % 2>(ready.bytes_of(group) + column * 4, kPanel * 4);
            tile_load<4 + kSlot % 2>(rows.codes + group / Shape::kParts * group_bytes + part * Shape::kGroup,
                                     Shape::kInputs);
            tile_products_int8<kSlot, 4 + kSlot % 2, 6 + kSlot % 2>();
        }
        if (group > 0 && group <= num_groups) tile_store<kBefore>(ring[kBefore], W * 4);
    };
    const auto take = [&](int group) __attribute__((always_inline)) {
        const vf scales = load(ready.scales[group] + column);
        const vf mins = kMins ? load(ready.mins[kMins ? group : 0] + column) : vf{};
        const float* own = row_scales.scales + group / Shape::kParts * row_scales.step;
        const std::int32_t* exact = ring[group % kRing][0];
#pragma GCC unroll 16
        for (int m = 0; m < kTileRows; ++m) {
            const vf row_shift = kMins ? splat(own[kTileRows + m]) : vf{};
            const vi sums = load_as<vi>(exact + m * W);
            totals[m] = plus_scaled<kMins>(totals[m], sums, scales, mins, splat(own[m]), row_shift);
        }
    };
    if (sums.unpacks)
        for (int group = 0; group < kUnpackedAhead && group < num_groups; ++group) ready.unpack(group);
    for (int group = 0; group < num_groups + kRing; ++group) {
        if (sums.unpacks && group + kUnpackedAhead < num_groups) ready.unpack(group + kUnpackedAhead);
        switch (group % kRing) {
            case 0: multiply(Slot<0>{}, group); break;
            case 1: multiply(Slot<1>{}, group); break;
            case 2: multiply(Slot<2>{}, group); break;
            case 3: multiply(Slot<3>{}, group); break;
        }
        for (int line = 0; line < sums.lines; ++line, sums.ahead += 64) __builtin_prefetch(sums.ahead, 0, 2);
        if (group >= kRing) take(group - kRing);
    }
#pragma GCC unroll 16
    for (int m = 0; m < kTileRows; ++m)
        if (m < rows.count) store(sums.at + m * sums.stride, totals[m]);
}

// `ahead`: lines that are asked for while a group is taken up.
template <Format kFormat, bool kMins>
void add_tiles(const ProductArgs& args, ReadyGroups<kFormat, kMins>& ready, const char* ahead, int lines) {
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
                     {args.scratch + row * args.stride + column, args.stride, ready.first_group > 0,
                      ready.kUnpacks && row + column == 0, ahead, lines});
    }
}

// Of so few rows the sums are copied to where they go.
template <Format kFormat>
OCTAVO_INLINE void few_codes(const ProductArgs& args) {
    if (args.stride == kPanel) return product_codes<kFormat>(args);
    alignas(64) float sums[few_rows(GroupShape<kFormat>::kBits)][kPanel];
    ProductArgs own = args;
    own.scratch = sums[0];
    product_codes<kFormat>(own);
    for (int row = 0; row < args.num_rows; ++row)
        for (int v = 0; v < kPanel; v += W) store(args.scratch + row * args.stride + v, load(sums[row] + v));
}

template <Format kFormat>
void product_codes_tiles(const ProductArgs& args) {
    if (args.num_rows < few_rows(GroupShape<kFormat>::kBits)) return few_codes<kFormat>(args);
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
