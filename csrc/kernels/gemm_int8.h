// Products with quantized panels: a row's values become bytes, group by group, and only the sums of a group's integer
// products are scaled and added up, in float32 and in the order of the groups.
#pragma once

#include "kernels/elementwise.h"
#include "kernels/kernels.h"
#include "simd/dot.h"

namespace {

// --- a row as bytes ---------------------------------------------------------------------------------------------

// code = x * 127 / max|x|, to the nearest, ties to even. A group with an infinity or NaN gets a scale of NaN.
template <int kGroup>
OCTAVO_INLINE void quantize_group(const float* x, std::int8_t* codes, GroupHeader* header) {
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
    header->scale = counts ? largest / 127.0f : largest_bits < 0x7f800000 ? 0.0f : __builtin_nanf("");
    constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    for (int half = 0; half < 2; ++half) {
        vi sums = {};
        for (int i = half * kGroup / 2; i < (half + 1) * kGroup / 2; i += W) {
            const vf value = counts ? load(x + i) : splat(0.0f);
            const vi code = (vi)(value * inverse + kMagic) - (vi)splat(kMagic);
            store_bytes(codes + i, code);
            sums += code;
        }
        header->sums[half] = fold(sums, [](vi4 a, vi4 b) { return a + b; });
    }
    header->sum = header->sums[0] + header->sums[1];
    header->shift = header->scale * static_cast<float>(header->sum);
}

template <int kGroup>
void pack_rows_int8(const PackArgs& args, int first_row, int num_rows) {
    alignas(64) float values[kGroup];
    for (int row = first_row; row < first_row + num_rows; ++row) {
        const float* x = args.x + (args.rows != nullptr ? args.rows[row] : row) * args.stride;
        const float scale = args.norm != nullptr ? inverse_rms(x, args.num_in, args.eps) : 1.0f;
        auto* codes = static_cast<std::int8_t*>(args.packed) + row * args.row_bytes;
        auto* headers = reinterpret_cast<GroupHeader*>(codes + args.padded_in);
        for (int first = 0; first < args.padded_in; first += kGroup, ++headers) {
            const int left = args.num_in - first, count = left < kGroup ? (left > 0 ? left : 0) : kGroup;
            if (args.norm != nullptr)
                for (int i = 0; i < count; ++i) values[i] = x[first + i] * scale * args.norm[first + i];
            else
                for (int i = 0; i < count; ++i) values[i] = x[first + i];
            for (int i = count; i < kGroup; ++i) values[i] = 0.0f;
            quantize_group<kGroup>(values, codes + first, headers);
        }
    }
}

// --- a panel ----------------------------------------------------------------------------------------------------

constexpr int code_vectors(int rows) { return kPanel / W < 4 || rows <= 2 ? kPanel / W : 2; }

constexpr int kCodesAhead = 1024;  // bytes of codes that are asked for before they are needed

// Where the parts of one super-block of a panel lie; SuperBlockLayout in weights/packed_matrix.cpp wrote them there.
template <int kBits, int kGroup>
struct SuperBlockReader {
    static constexpr int kInputs = kGroup < 32 ? 32 : kGroup;  // that a row's scale counts for
    static constexpr int kParts = kInputs / kGroup;
    static constexpr std::int64_t kCodeBytes = std::int64_t{kInputs} * kPanel * kBits / 8;

    const std::uint16_t *scales, *mins;
    const std::int8_t *sub_scales, *sub_mins;
    const char* codes;
    int num_groups;

    // The super-block that begins at `at`, of at most `left` groups. Returns where the next one begins.
    const char* find(const char* at, QuantKind kind, int left) {
        num_groups = left < kSuperBlockGroups ? left : kSuperBlockGroups;
        const int num_sub_scales = num_groups * kParts * kPanel;
        const int num_scales = kind.has_sub_scales ? kPanel : num_sub_scales;
        scales = reinterpret_cast<const std::uint16_t*>(at);
        mins = scales + num_scales;
        sub_scales = reinterpret_cast<const std::int8_t*>(kind.has_mins ? mins + num_scales : mins);
        sub_mins = sub_scales + num_sub_scales;
        codes = reinterpret_cast<const char*>(sub_scales);
        if (kind.has_sub_scales) codes += (kind.has_mins ? 2 : 1) * num_sub_scales;
        return codes + num_groups * kCodeBytes;
    }
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
template <int kBits, int kGroup>
struct Widened {
    static constexpr int kParts = SuperBlockReader<kBits, kGroup>::kParts;

    alignas(64) float values[kSuperBlockGroups * kParts][kPanel];

    OCTAVO_INLINE vf at(int group, int column) const { return load(values[group] + column); }

    template <class Source>
    void fill(const Source& from, int num_groups) {
        for (int group = 0; group < num_groups * kParts; ++group)
            for (int v = 0; v < kPanel; v += W) store(values[group] + v, from.at(group, v));
    }
};

// Where the rows and sums of one tile lie, and from which of the panel's columns on.
struct CodesTile {
    const std::int8_t* x;  // the rows' codes of the super-block's first group
    const GroupHeader* headers;
    std::int64_t row_bytes;
    float* sums;  // of column `column`; rows are kPanel apart
    int column;
    bool continues;
};

OCTAVO_INLINE const GroupHeader& header_of(const CodesTile& t, int row) {
    return *reinterpret_cast<const GroupHeader*>(reinterpret_cast<const char*>(t.headers) + row * t.row_bytes);
}

// Integer sums of `kGroup` inputs.
template <int kBits, int kGroup, int MR, int NV>
OCTAVO_INLINE void add_group(const char* codes, const std::int8_t* x, std::int64_t row_bytes, vi (&sums)[MR][NV]) {
    constexpr int kSteps = kBits == 4 ? kGroup / 8 : kGroup / 4;
#pragma GCC unroll 1
    for (int step = 0; step < kSteps; ++step, codes += kPanel * 4, x += 4) {
        if constexpr (MR <= 2)
#pragma GCC unroll 4
            for (int line = 0; line < NV * W * 4; line += 64) __builtin_prefetch(codes + kCodesAhead + line, 0, 3);
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
                    add_nibbles(sums[m][v], words[v], splat_bytes(x + m * row_bytes));
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) words[v] = (vi)(load_as<vu>(codes + v * W * 4) >> 4) & low_half;
#pragma GCC unroll 8
            for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
                for (int v = 0; v < NV; ++v)
                    add_nibbles(sums[m][v], words[v], splat_bytes(x + m * row_bytes + kGroup / 2));
        } else {
            Bytes words[NV];
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) words[v] = prepare(load_as<vi>(codes + v * W * 4));
#pragma GCC unroll 8
            for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
                for (int v = 0; v < NV; ++v)
                    add_bytes(sums[m][v], words[v], splat_bytes(x + m * row_bytes));
        }
    }
}

// total + sums * scales * the row's scale (+ minimums * its shift), W columns of one row and group. All products end
// here: their bits are the same whatever made the integer sums.
template <bool kMins>
OCTAVO_INLINE vf plus_scaled(vf total, vi sums, vf scales, vf mins, const GroupHeader& header) {
    total = fma(__builtin_convertvector(sums, vf) * scales, splat(header.scale), total);
    return kMins ? fma(mins, splat(header.shift), total) : total;
}

template <int kBits, int kGroup, bool kMins, int MR, int NV, class Scales>
inline __attribute__((noinline)) void codes_tile(const SuperBlockReader<kBits, kGroup>& block, const Scales& scales,
                                                 const Scales& mins, CodesTile t) {
    using S = SuperBlockReader<kBits, kGroup>;
    constexpr int kExcess = kBits == 8 ? kBias : kMins ? 0 : 8;  // that all weights went in with too much
    constexpr bool kHolds = MR == 1;  // totals in registers, which more rows need for the integer sums
    const int num_scales = block.num_groups * S::kParts;
    if (!t.continues)
        for (int m = 0; m < MR; ++m)
            for (int v = 0; v < NV; ++v) store(t.sums + m * kPanel + v * W, splat(0.0f));
    vf held[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) held[v] = load(t.sums + v * W);
    const char* codes = block.codes + t.column * 4;
    for (int at = 0; at < num_scales; ++at, codes += S::kCodeBytes / S::kParts, t.x += kGroup) {
        const int part = at % S::kParts;
        vi sums[MR][NV] = {};
        add_group<kBits, kGroup>(codes, t.x, t.row_bytes, sums);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
            const GroupHeader& header = header_of(t, m);
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) {
                vi exact = kBits == 4 ? total_of_nibbles(sums[m][v]) : sums[m][v];
                if constexpr (kExcess > 0)
                    exact -= splat_int(S::kParts == 1 ? header.sum : header.sums[part]) * kExcess;
                const vf scale = scales.at(at, t.column + v * W), min = kMins ? mins.at(at, t.column + v * W) : vf{};
                float* out = t.sums + m * kPanel + v * W;
                const vf total = plus_scaled<kMins>(kHolds ? held[v] : load(out), exact, scale, min, header);
                if constexpr (kHolds)
                    held[v] = total;
                else
                    store(out, total);
            }
        }
        if (part == S::kParts - 1) ++t.headers;
    }
    if constexpr (kHolds)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) store(t.sums + v * W, held[v]);
}

// A tile of `rows` <= kCodeRows rows (MR counts down to it) and all columns.
template <int kBits, int kGroup, bool kMins, int MR = kCodeRows, class Scales>
OCTAVO_INLINE void codes_tiles(int rows, const SuperBlockReader<kBits, kGroup>& block, const Scales& scales,
                               const Scales& mins, CodesTile t) {
    if constexpr (MR > 0) {
        if (rows < MR) return codes_tiles<kBits, kGroup, kMins, MR - 1>(rows, block, scales, mins, t);
        constexpr int NV = code_vectors(MR);
        for (; t.column < kPanel; t.column += NV * W, t.sums += NV * W)
            codes_tile<kBits, kGroup, kMins, MR, NV>(block, scales, mins, t);
    }
}

template <bool kValue>
struct Flag {
    static constexpr bool value = kValue;
};

// f(minimums, sub-scales): whether panels of a kind have them, as Flags.
template <int kGroup, class F>
OCTAVO_INLINE void with_flags(QuantKind kind, F&& f) {
    if constexpr (kGroup == 32)
        if (kind.has_mins) return kind.has_sub_scales ? f(Flag<true>{}, Flag<true>{}) : f(Flag<true>{}, Flag<false>{});
    kind.has_sub_scales ? f(Flag<false>{}, Flag<true>{}) : f(Flag<false>{}, Flag<false>{});
}

// f(super-block, its first group, stored scales, stored minimums) for every super-block of the panel.
template <int kBits, int kGroup, bool kSubScales, class F>
OCTAVO_INLINE void each_super_block(const ProductArgs& args, F&& f) {
    SuperBlockReader<kBits, kGroup> block;
    const int num_groups = args.padded_in / block.kInputs;
    const char* at = static_cast<const char*>(args.panel.data);
    for (int group = 0; group < num_groups; group += kSuperBlockGroups) {
        at = block.find(at, args.panel.kind, num_groups - group);
        f(block, group, Stored<kSubScales>{block.scales, block.sub_scales},
          Stored<kSubScales>{block.mins, block.sub_mins});
    }
}

template <int kBits, int kGroup>
OCTAVO_INLINE CodesTile tile_of(const ProductArgs& args, int row, int group) {
    const auto* x = static_cast<const std::int8_t*>(args.packed) + (args.first_row + row) * args.row_bytes;
    const auto* headers = reinterpret_cast<const GroupHeader*>(x + args.padded_in) + group;
    float* sums = args.scratch + std::int64_t{row} * kPanel;
    return {x + group * SuperBlockReader<kBits, kGroup>::kInputs, headers, args.row_bytes, sums, 0, group > 0};
}

template <int kBits, int kGroup>
void product_codes(const ProductArgs& args) {
    with_flags<kGroup>(args.panel.kind, [&](auto has_mins, auto has_sub_scales) {
        constexpr bool kMins = decltype(has_mins)::value, kSubScales = decltype(has_sub_scales)::value;
        if (args.num_rows == 1)  // what would be widened would be used only once
            return each_super_block<kBits, kGroup, kSubScales>(args, [&](auto& block, int at, auto scales, auto mins) {
                codes_tiles<kBits, kGroup, kMins, 1>(1, block, scales, mins, tile_of<kBits, kGroup>(args, 0, at));
            });
        Widened<kBits, kGroup> scales, mins;
        each_super_block<kBits, kGroup, kSubScales>(args, [&](auto& block, int group, auto stored, auto stored_mins) {
            scales.fill(stored, block.num_groups);
            if constexpr (kMins) mins.fill(stored_mins, block.num_groups);
            for (int row = 0; row < args.num_rows; row += kCodeRows) {
                const int rows = args.num_rows - row < kCodeRows ? args.num_rows - row : kCodeRows;
                const CodesTile tile = tile_of<kBits, kGroup>(args, row, group);
                codes_tiles<kBits, kGroup, kMins>(rows, block, scales, mins, tile);
            }
        });
    });
}

}  // namespace
