// Products of whole numbers by tile registers: exact sums of a group, so the bits are those of gemm_int8.h, which serves
// where there are few rows.
#pragma once

#include "kernels/gemm_int8.h"
#include "kernels/kernels.h"

namespace {

constexpr int kFewRows = 8;  // less than so many fill too little of a tile

// A group's codes as signed bytes: themselves, or both halves of each byte.
template <Format kFormat>
OCTAVO_INLINE const std::int8_t* bytes_of(const char* codes, std::int8_t* room) {
    if constexpr (GroupShape<kFormat>::kBits == 8) {
        return reinterpret_cast<const std::int8_t*>(codes);
    } else {
        static_assert(GroupShape<kFormat>::kBits == 4);
        constexpr int kHalf = GroupShape<kFormat>::kGroup / 2 * kPanel;
        for (int i = 0; i < kHalf; i += W * 4) {
            const vi words = load_as<vi>(codes + i), low_half = (vi)splat_word(0x0f0f0f0fu);
            const vi low = words & low_half, high = (vi)((vu)words >> 4) & low_half;
            std::memcpy(room + i, &low, sizeof low);
            std::memcpy(room + kHalf + i, &high, sizeof high);
        }
        return room;
    }
}

template <bool kMins, Format kFormat>
void add_tiles(const ProductArgs& args, const SuperBlock& block, int first_group, const Widened<kFormat>& scales,
               const Widened<kFormat>& mins) {
    using Shape = GroupShape<kFormat>;
    constexpr int kGroup = Shape::kGroup, kExcess = kMins ? 0 : Shape::kTraits.excess;
    static_assert(kGroup <= 64, "a row of a tile has 64 bytes");
    alignas(64) std::int8_t room[kGroup * kPanel];
    alignas(64) std::int32_t sums[2 * kTileRows * kPanel];
    int rows_before = -1, more_before = -1;
    for (int index = 0; index < block.num_groups; ++index) {
        const int group = first_group + index / Shape::kParts, part = index % Shape::kParts;
        const auto* b = bytes_of<kFormat>(block.codes + index * Shape::kGroupBytes, room);
        for (int row = 0; row < args.num_rows; row += 2 * kTileRows) {
            const int left = args.num_rows - row, rows = left < kTileRows ? left : kTileRows;
            const int more = left - rows < kTileRows ? left - rows : kTileRows;
            if (rows != rows_before || more != more_before) configure(rows, more, kGroup);
            rows_before = rows, more_before = more;
            const auto* x = static_cast<const std::int8_t*>(args.packed) + (args.first_row + row) * args.row_bytes;
            const std::int8_t* a = x + group * Shape::kInputs + part * kGroup;
            if (more > 0)
                multiply_bytes<true>(a, args.row_bytes, b, sums);
            else
                multiply_bytes<false>(a, args.row_bytes, b, sums);
            for (int m = 0; m < rows + more; ++m) {
                const std::int8_t* row_headers = x + m * args.row_bytes + args.padded_in;
                const auto& header = reinterpret_cast<const GroupHeader*>(row_headers)[group];
                for (int v = 0; v < kPanel; v += W) {
                    vi exact = load_as<vi>(sums + m * kPanel + v);
                    if constexpr (kExcess > 0)
                        exact -= splat_int(Shape::kParts == 1 ? header.sum : header.sums[part]) * kExcess;
                    float* out = args.scratch + (row + m) * kPanel + v;
                    const vf min = kMins ? mins.at(index, v) : vf{};
                    store(out, plus_scaled<kMins>(load(out), exact, scales.at(index, v), min, header));
                }
            }
        }
    }
}

template <Format kFormat>
void product_codes_tiles(const ProductArgs& args) {
    if (args.num_rows < kFewRows) return product_codes<kFormat>(args);
    std::memset(args.scratch, 0, sizeof(float) * static_cast<std::size_t>(args.num_rows) * kPanel);
    with_flags<kFormat>(args.panel.kind, [&](auto has_mins, auto has_sub_scales) {
        constexpr bool kMins = decltype(has_mins)::value, kSubScales = decltype(has_sub_scales)::value;
        Widened<kFormat> scales, mins;
        each_super_block<kFormat, kMins, kSubScales>(
            args, [&](const SuperBlock& block, int group, auto stored, auto stored_mins) {
                scales.fill(stored, block.num_groups);
                if constexpr (kMins) mins.fill(stored_mins, block.num_groups);
                add_tiles<kMins>(args, block, group, scales, mins);
            });
    });
    release();
}

}  // namespace
