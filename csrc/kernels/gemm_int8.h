// Products with quantized panels: a row's values become bytes, group by group, and only the sums of a group's integer
// products are scaled and added up, in float32 and in the order of the groups.
#pragma once

#include <cstddef>

#include "kernels/elementwise.h"
#include "kernels/kernels.h"
#include "simd/dot.h"

namespace {

// --- rows as bytes ----------------------------------------------------------------------------------------------

constexpr int kCodeBlockRows = 16;  // of a block of packed rows; a product's tile of rows lies in one of them
static_assert(kCodeBlockRows % kCodeRows == 0);

// The rows of a block, from one of their groups on: where a row's codes are, and the numbers of its GroupHeader.
struct RowsOfBlock {
    const std::int8_t* codes;
    const char* headers;
    int count;  // rows of the block

    OCTAVO_INLINE const char* header(int row, std::size_t field) const {
        return headers + static_cast<std::size_t>(count) * field + static_cast<std::size_t>(row) * 4;
    }
    OCTAVO_INLINE float number(int row, std::size_t field) const { return load_as<float>(header(row, field)); }
    OCTAVO_INLINE float scale(int row) const { return number(row, offsetof(GroupHeader, scale)); }
    OCTAVO_INLINE float shift(int row) const { return number(row, offsetof(GroupHeader, shift)); }
    // The sums of all rows' groups, or of one half of them; -1: whole ones.
    OCTAVO_INLINE const char* sums_of(int half) const {
        if (half < 0) return header(0, offsetof(GroupHeader, sum));
        return header(0, offsetof(GroupHeader, sums) + 4 * static_cast<std::size_t>(half));
    }

    OCTAVO_INLINE void skip_groups(int num_groups, int group_len) {
        codes += std::int64_t{num_groups} * count * group_len;
        headers += std::int64_t{num_groups} * count * static_cast<std::int64_t>(sizeof(GroupHeader));
    }
};

// `row` and those after it in its block, from their first group on.
OCTAVO_INLINE RowsOfBlock rows_at(const void* packed, int row, int total_rows, std::int64_t row_bytes, int group_len,
                                  int padded_in) {
    const int in_block = row % kCodeBlockRows, first = row - in_block, left = total_rows - first;
    const int count = left < kCodeBlockRows ? left : kCodeBlockRows;
    const auto* block = static_cast<const std::int8_t*>(packed) + first * row_bytes;
    const auto* headers = reinterpret_cast<const char*>(block) + std::int64_t{count} * padded_in;
    return {block + in_block * group_len, headers + in_block * 4, count};
}

// code = x * 127 / max|x|, to the nearest, ties to even. A group with an infinity or NaN gets a scale of NaN.
template <int kGroup>
OCTAVO_INLINE GroupHeader quantize_group(const float* x, std::int8_t* codes) {
    // Of numbers without their sign the bits are in the order of the numbers, infinity and NaN on top.
    vi most = {};
    for (int i = 0; i < kGroup; i += W) {
        const vi bits = (vi)load(x + i) & 0x7fffffff;
        most = bits > most ? bits : most;
    }
    const std::int32_t largest_bits = fold(most, [](vi4 a, vi4 b) { return a > b ? a : b; });
    float largest;
    std::memcpy(&largest, &largest_bits, sizeof largest);
    const bool counts = largest > 1e-30f && largest_bits < 0x7f800000;
    const float inverse = counts ? 127.0f / largest : 0.0f;
    GroupHeader header;
    header.scale = counts ? largest / 127.0f : largest_bits < 0x7f800000 ? 0.0f : __builtin_nanf("");
    constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    for (int half = 0; half < 2; ++half) {
        vi sums = {};
        for (int i = half * kGroup / 2; i < (half + 1) * kGroup / 2; i += W) {
            const vf value = counts ? load(x + i) : splat(0.0f);
            const vi code = (vi)(value * inverse + kMagic) - (vi)splat(kMagic);
            store_bytes(codes + i, code);
            sums += code;
        }
        header.sums[half] = fold(sums, [](vi4 a, vi4 b) { return a + b; });
    }
    header.sum = header.sums[0] + header.sums[1];
    header.shift = header.scale * static_cast<float>(header.sum);
    return header;
}

template <int kGroup>
void pack_rows_int8(const PackArgs& args, int first_row, int num_rows) {
    alignas(64) float values[kGroup];
    for (int row = first_row; row < first_row + num_rows; ++row) {
        const float* x = args.x + (args.rows != nullptr ? args.rows[row] : row) * args.stride;
        const float scale = args.norm != nullptr ? inverse_rms(x, args.num_in, args.eps) : 1.0f;
        RowsOfBlock to = rows_at(args.packed, row, args.num_rows, args.row_bytes, kGroup, args.padded_in);
        for (int first = 0; first < args.padded_in; first += kGroup, to.skip_groups(1, kGroup)) {
            const int left = args.num_in - first, count = left < kGroup ? (left > 0 ? left : 0) : kGroup;
            if (args.norm != nullptr)
                for (int i = 0; i < count; ++i) values[i] = x[first + i] * scale * args.norm[first + i];
            else
                for (int i = 0; i < count; ++i) values[i] = x[first + i];
            for (int i = count; i < kGroup; ++i) values[i] = 0.0f;
            const GroupHeader header = quantize_group<kGroup>(values, const_cast<std::int8_t*>(to.codes));
            for (std::size_t field = 0; field < sizeof header; field += 4)
                std::memcpy(const_cast<char*>(to.header(0, field)), reinterpret_cast<const char*>(&header) + field, 4);
        }
    }
}

// --- a panel ----------------------------------------------------------------------------------------------------

constexpr int code_vectors(int rows) { return kPanel / W < 4 || rows <= 2 ? kPanel / W : 2; }

// Where a panel is read for one or two rows only, memory is what it waits for, and each of its lines is asked for once,
// so many bytes ahead; beyond its end lie the lines of the next one.
constexpr int kBytesAhead = 4096;
constexpr int kFetchingRows = 2;

OCTAVO_INLINE void fetch_ahead(const char* from, int num_bytes) {
#pragma GCC unroll 4
    for (int line = 0; line < num_bytes; line += 64) __builtin_prefetch(from + kBytesAhead + line, 0, 3);
}

// One super-block of a panel: where its parts are.
struct SuperBlock {
    const std::uint16_t *scales, *mins;
    const std::int8_t *sub_scales, *sub_mins;
    const char* codes;
    int num_groups;
};

OCTAVO_INLINE SuperBlock super_block_at(const char* at, const SuperBlockLayout& layout) {
    return {reinterpret_cast<const std::uint16_t*>(at),
            reinterpret_cast<const std::uint16_t*>(at + layout.mins_at),
            reinterpret_cast<const std::int8_t*>(at + layout.sub_scales_at),
            reinterpret_cast<const std::int8_t*>(at + layout.sub_mins_at),
            at + layout.codes_at,
            layout.num_groups};
}

// How a format's codes are grouped, as constants of the loops over them.
template <Format kFormat>
struct GroupShape {
    static constexpr FormatTraits kTraits = traits_of(kFormat);
    static constexpr int kBits = kTraits.bits, kGroup = kTraits.group_len;
    static constexpr int kInputs = traits_of(kTraits.input).group_len;  // that a row's scale counts for
    static constexpr int kParts = kInputs / kGroup;
    static constexpr int kMostGroups = kSuperBlockGroups * kParts;
    static constexpr int kGroupBytes = layout_of(kFormat, {}, kGroup).group_bytes;

    static_assert(kBits == 8 || (kBits == 4 && kGroup <= 32), "add_group: no sums of such codes");
    static_assert(kParts <= 2, "GroupHeader has the sums of two halves");
};

// A super-block's scales, or its minimums, as they lie.
template <bool kSubScales>
struct Stored {
    const std::uint16_t* halves;
    const std::int8_t* sub_scales;

    OCTAVO_INLINE vf at(int group, int column) const {
        if constexpr (kSubScales) return load_half(halves + column) * load(sub_scales + group * kPanel + column);
        return load_half(halves + group * kPanel + column);
    }
};

// The same in float32, for many rows.
template <Format kFormat>
struct Widened {
    alignas(64) float values[GroupShape<kFormat>::kMostGroups][kPanel];

    OCTAVO_INLINE vf at(int group, int column) const { return load(values[group] + column); }

    template <class Source>
    void fill(const Source& from, int num_groups) {
        for (int group = 0; group < num_groups; ++group)
            for (int v = 0; v < kPanel; v += W) store(values[group] + v, from.at(group, v));
    }
};

// Where the rows and sums of one tile lie, and from which of the panel's columns on.
struct CodesTile {
    RowsOfBlock rows;  // from the super-block's first group on
    float* sums;  // of column `column`; rows are kPanel apart
    int column;
    bool continues;
};

// Four inputs of a group, with int4 the four of its second half too, added to the group's sums.
template <Format kFormat, int MR, int NV>
OCTAVO_INLINE void add_step(const char* codes, const std::int8_t* x, vi (&sums)[MR][NV]) {
    if constexpr (MR <= kFetchingRows) fetch_ahead(codes, NV * W * 4);
    using Shape = GroupShape<kFormat>;
    constexpr int kBits = Shape::kBits, kGroup = Shape::kGroup, kRow = Shape::kInputs;  // bytes of a row's group
    if constexpr (kBits == 4 && MR == 1) {
        const vi low_half = (vi)splat_word(0x0f0f0f0fu);
        const vi low_x = splat_bytes(x), high_x = splat_bytes(x + kGroup / 2);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {  // every byte is loaded once
            const vi words = load_as<vi>(codes + v * W * 4);
            add_nibbles(sums[0][v], words & low_half, low_x);
            add_nibbles(sums[0][v], (vi)((vu)words >> 4) & low_half, high_x);
        }
    } else if constexpr (kBits == 4) {
        const vi low_half = (vi)splat_word(0x0f0f0f0fu);
        vi words[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) words[v] = load_as<vi>(codes + v * W * 4) & low_half;
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v)
                add_nibbles(sums[m][v], words[v], splat_bytes(x + m * kRow));
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) words[v] = (vi)(load_as<vu>(codes + v * W * 4) >> 4) & low_half;
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v)
                add_nibbles(sums[m][v], words[v], splat_bytes(x + m * kRow + kGroup / 2));
    } else {
        static_assert(kBits == 8);
        Bytes words[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) words[v] = prepare(load_as<vi>(codes + v * W * 4));
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v)
                add_bytes(sums[m][v], words[v], splat_bytes(x + m * kRow));
    }
}

// Integer sums of one group's inputs.
template <Format kFormat, int MR, int NV>
OCTAVO_INLINE void add_group(const char* codes, const std::int8_t* x, vi (&sums)[MR][NV]) {
    constexpr int kSteps = GroupShape<kFormat>::kGroup * GroupShape<kFormat>::kBits / 32;
    if constexpr (MR == 1) {
#pragma GCC unroll 4
        for (int step = 0; step < kSteps; ++step)  // a step is as short as the loop around it
            add_step<kFormat>(codes + step * kPanel * 4, x + step * 4, sums);
    } else {
#pragma GCC unroll 1
        for (int step = 0; step < kSteps; ++step)
            add_step<kFormat>(codes + step * kPanel * 4, x + step * 4, sums);
    }
}

// total + sums * scales * the row's scale (+ minimums * its shift), W columns of one row and group. All products end
// here: their bits are the same whatever made the integer sums.
template <bool kMins>
OCTAVO_INLINE vf plus_scaled(vf total, vi sums, vf scales, vf mins, vf row_scale, vf row_shift) {
    total = fma(__builtin_convertvector(sums, vf) * scales, row_scale, total);
    return kMins ? fma(mins, row_shift, total) : total;
}

template <Format kFormat, bool kMins, int MR, int NV, class Scales>
inline __attribute__((noinline)) void codes_tile(const SuperBlock& block, const Scales& scales, const Scales& mins,
                                                 CodesTile t) {
    using Shape = GroupShape<kFormat>;
    // That all weights went in with too much: bytes with the instruction's bias, packed codes with their own excess.
    constexpr int kExcess = (Shape::kBits == 8 ? kBias : 0) + (kMins ? 0 : Shape::kTraits.excess);
    constexpr bool kHolds = MR == 1;  // totals in registers, which more rows need for the integer sums
    const int num_groups = block.num_groups;
    if (!t.continues)
        for (int m = 0; m < MR; ++m)
            for (int v = 0; v < NV; ++v) store(t.sums + m * kPanel + v * W, splat(0.0f));
    vf held[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) held[v] = load(t.sums + v * W);
    const char* codes = block.codes + t.column * 4;
    for (int at = 0; at < num_groups; ++at, codes += Shape::kGroupBytes) {
        const int part = at % Shape::kParts;
        const char* row_scales = t.rows.header(0, offsetof(GroupHeader, scale));
        const char* row_shifts = t.rows.header(0, offsetof(GroupHeader, shift));
        const char* row_sums = t.rows.sums_of(Shape::kParts == 1 ? -1 : part);
        vi sums[MR][NV] = {};
        add_group<kFormat>(codes, t.rows.codes + part * Shape::kGroup, sums);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) {
                const vf scale = scales.at(at, t.column + v * W), min = kMins ? mins.at(at, t.column + v * W) : vf{};
                float* out = t.sums + m * kPanel + v * W;
                const vf shift = kMins ? splat(load_as<float>(row_shifts + m * 4)) : vf{};
                vi exact = Shape::kBits == 4 ? total_of_nibbles(sums[m][v]) : sums[m][v];
                if constexpr (kExcess > 0) exact -= splat_int(load_as<std::int32_t>(row_sums + m * 4)) * kExcess;
                const vf row_scale = splat(load_as<float>(row_scales + m * 4));
                const vf total = plus_scaled<kMins>(kHolds ? held[v] : load(out), exact, scale, min, row_scale, shift);
                if constexpr (kHolds)
                    held[v] = total;
                else
                    store(out, total);
            }
        }
        if (part == Shape::kParts - 1) t.rows.skip_groups(1, Shape::kInputs);
    }
    if constexpr (kHolds)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) store(t.sums + v * W, held[v]);
}

// A tile of `rows` <= kCodeRows rows (MR counts down to it) and all columns.
template <Format kFormat, bool kMins, int MR = kCodeRows, class Scales>
OCTAVO_INLINE void codes_tiles(int rows, const SuperBlock& block, const Scales& scales, const Scales& mins,
                               CodesTile t) {
    if constexpr (MR > 0) {
        if (rows < MR) return codes_tiles<kFormat, kMins, MR - 1>(rows, block, scales, mins, t);
        constexpr int NV = code_vectors(MR);
        for (; t.column < kPanel; t.column += NV * W, t.sums += NV * W)
            codes_tile<kFormat, kMins, MR, NV>(block, scales, mins, t);
    }
}

template <bool kValue>
struct Flag {
    static constexpr bool value = kValue;
};

// f(minimums, sub-scales): whether panels of a kind have them, as Flags. Only what the format may have is compiled.
template <Format kFormat, class F>
OCTAVO_INLINE void with_flags(QuantKind kind, F&& f) {
    const auto with_sub_scales = [&](auto has_mins) {
        if constexpr (may_have_sub_scales(kFormat))
            if (kind.has_sub_scales) return f(has_mins, Flag<true>{});
        f(has_mins, Flag<false>{});
    };
    if constexpr (traits_of(kFormat).may_have_mins)
        if (kind.has_mins) return with_sub_scales(Flag<true>{});
    with_sub_scales(Flag<false>{});
}

// f(super-block, its first group of the rows' inputs, stored scales, stored minimums) for every super-block of the
// panel. `fetches`: what is not codes is asked for ahead.
template <Format kFormat, bool kMins, bool kSubScales, class F>
OCTAVO_INLINE void each_super_block(const PanelView& panel, int padded_in, bool fetches, F&& f) {
    constexpr int kInputs = super_block_inputs(kFormat);
    const char* at = static_cast<const char*>(panel.data);
    for (int first = 0; first < padded_in; first += kInputs) {
        const int left = padded_in - first;
        const SuperBlockLayout layout = layout_of(kFormat, {kMins, kSubScales}, left < kInputs ? left : kInputs);
        const SuperBlock block = super_block_at(at, layout);
        if (fetches) fetch_ahead(at, layout.codes_at);
        at += layout.num_bytes;
        f(block, first / GroupShape<kFormat>::kInputs, Stored<kSubScales>{block.scales, block.sub_scales},
          Stored<kSubScales>{block.mins, block.sub_mins});
    }
}

template <Format kFormat>
OCTAVO_INLINE RowsOfBlock rows_from(const ProductArgs& args, int row, int group) {
    constexpr int kInputs = GroupShape<kFormat>::kInputs;
    RowsOfBlock rows = rows_at(args.packed, args.first_row + row, args.total_rows, args.row_bytes, kInputs, args.padded_in);
    rows.skip_groups(group, kInputs);
    return rows;
}

template <Format kFormat>
OCTAVO_INLINE CodesTile tile_of(const ProductArgs& args, int row, int group) {
    return {rows_from<kFormat>(args, row, group), args.scratch + std::int64_t{row} * kPanel, 0, group > 0};
}

template <Format kFormat>
void product_codes(const ProductArgs& args) {
    with_flags<kFormat>(args.panel.kind, [&](auto has_mins, auto has_sub_scales) {
        constexpr bool kMins = decltype(has_mins)::value, kSubScales = decltype(has_sub_scales)::value;
        if (args.num_rows == 1)  // what would be widened would be used only once
            return each_super_block<kFormat, kMins, kSubScales>(
                args.panel, args.padded_in, true, [&](const SuperBlock& block, int group, auto scales, auto mins) {
                    codes_tiles<kFormat, kMins, 1>(1, block, scales, mins, tile_of<kFormat>(args, 0, group));
                });
        Widened<kFormat> scales, mins;
        each_super_block<kFormat, kMins, kSubScales>(
            args.panel, args.padded_in, args.num_rows <= kFetchingRows,
            [&](const SuperBlock& block, int group, auto stored, auto stored_mins) {
                scales.fill(stored, block.num_groups);
                if constexpr (kMins) mins.fill(stored_mins, block.num_groups);
                for (int row = 0; row < args.num_rows; row += kCodeRows) {
                    const int rows = args.num_rows - row < kCodeRows ? args.num_rows - row : kCodeRows;
                    codes_tiles<kFormat, kMins>(rows, block, scales, mins, tile_of<kFormat>(args, row, group));
                }
            });
    });
}

}  // namespace
