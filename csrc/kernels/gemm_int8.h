// Products with panels of whole numbers: a row's values become bytes, group by group, and only the sums of a group's
// integer products are scaled and added up, in float32 and in the order of the groups.
#pragma once

#include "simd/dot.h"
#include "kernels/kernels.h"
#include "kernels/rowwise.h"

namespace {

// --- a row as bytes ---------------------------------------------------------------------------------------------

// W codes as bytes.
OCTAVO_INLINE void store_bytes(std::int8_t* to, vi codes) {
#if defined(__AVX512F__) && defined(OCTAVO_WIDE)
    _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)codes));
#elif defined(__AVX2__) && !defined(OCTAVO_WIDE)
    const __m256i words = _mm256_packs_epi32((__m256i)codes, (__m256i)codes);
    const __m128i low = _mm256_castsi256_si128(words), high = _mm256_extracti128_si256(words, 1);
    _mm_storel_epi64((__m128i*)to, _mm_packs_epi16(_mm_unpacklo_epi64(low, high), low));
#else
    typedef std::int8_t bytes __attribute__((vector_size(W)));
    const bytes narrow = __builtin_convertvector(codes, bytes);
    std::memcpy(to, &narrow, sizeof narrow);
#endif
}

// code = x * 127 / max|x|, to the nearest, ties to even. A group with an infinity or NaN gets a scale of NaN.
template <int kGroup>
OCTAVO_INLINE void quantise_group(const float* x, std::int8_t* codes, GroupHead* head) {
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
    head->scale = counts ? largest / 127.0f : largest_bits < 0x7f800000 ? 0.0f : __builtin_nanf("");
    constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    for (int half = 0; half < 2; ++half) {
        vi sums = {};
        for (int i = half * kGroup / 2; i < (half + 1) * kGroup / 2; i += W) {
            const vf value = counts ? load(x + i) : splat(0.0f);
            const vi code = (vi)(value * inverse + kMagic) - (vi)splat(kMagic);
            store_bytes(codes + i, code);
            sums += code;
        }
        head->sums[half] = fold(sums, [](vi4 a, vi4 b) { return a + b; });
    }
    head->sum = head->sums[0] + head->sums[1];
    head->shift = head->scale * static_cast<float>(head->sum);
}

template <int kGroup>
void pack_rows_int8(const PackArgs& args, int first_row, int num_rows) {
    alignas(64) float values[kGroup];
    for (int row = first_row; row < first_row + num_rows; ++row) {
        const float* x = args.x + (args.rows != nullptr ? args.rows[row] : row) * args.stride;
        const float scale = args.norm != nullptr ? inverse_rms(x, args.num_in, args.eps) : 1.0f;
        auto* codes = static_cast<std::int8_t*>(args.packed) + row * args.row_bytes;
        auto* heads = reinterpret_cast<GroupHead*>(codes + args.padded_in);
        for (int first = 0; first < args.padded_in; first += kGroup, ++heads) {
            const int left = args.num_in - first, count = left < kGroup ? (left > 0 ? left : 0) : kGroup;
            if (args.norm != nullptr)
                for (int i = 0; i < count; ++i) values[i] = x[first + i] * scale * args.norm[first + i];
            else
                for (int i = 0; i < count; ++i) values[i] = x[first + i];
            for (int i = count; i < kGroup; ++i) values[i] = 0.0f;
            quantise_group<kGroup>(values, codes + first, heads);
        }
    }
}

// --- a panel ----------------------------------------------------------------------------------------------------

#if defined(OCTAVO_WIDE)
constexpr int kCodeRows = 8;
#else
constexpr int kCodeRows = 4;
#endif

constexpr int code_vectors(int rows) { return kPanel / W < 4 || rows <= 2 ? kPanel / W : 2; }

constexpr int kCodesAhead = 1024;  // bytes of codes that are asked for before they are needed

// Where the parts of one stretch of a panel lie.
template <int kBits, int kGroup>
struct Stretch {
    static constexpr int kInputs = kGroup < 32 ? 32 : kGroup;  // that a row's scale counts for
    static constexpr int kParts = kInputs / kGroup;
    static constexpr std::int64_t kCodeBytes = std::int64_t{kInputs} * kPanel * kBits / 8;

    const std::uint16_t *scales, *mins;
    const std::int8_t *steps, *min_steps;
    const char* codes;
    int num_groups;

    // The stretch that begins at `at`, of at most `left` groups. Returns where the next one begins.
    const char* find(const char* at, Codes kind, int left) {
        num_groups = left < kStretchGroups ? left : kStretchGroups;
        const int num_steps = num_groups * kParts * kPanel, num_scales = kind.has_steps ? kPanel : num_steps;
        scales = reinterpret_cast<const std::uint16_t*>(at);
        mins = scales + num_scales;
        steps = reinterpret_cast<const std::int8_t*>(kind.has_mins ? mins + num_scales : mins);
        min_steps = steps + num_steps;
        codes = reinterpret_cast<const char*>(steps);
        if (kind.has_steps) codes += (kind.has_mins ? 2 : 1) * num_steps;
        return codes + num_groups * kCodeBytes;
    }
};

// A stretch's scales, or its minimums, as they lie.
template <bool kSteps>
struct Stored {
    const std::uint16_t* halves;
    const std::int8_t* steps;

    OCTAVO_INLINE vf at(int group, int column) const {
        if constexpr (kSteps) return load_half(halves + column) * load(steps + group * kPanel + column);
        return load_half(halves + group * kPanel + column);
    }
};

// The same in float32, for many rows.
template <int kBits, int kGroup>
struct Widened {
    static constexpr int kParts = Stretch<kBits, kGroup>::kParts;

    alignas(64) float values[kStretchGroups * kParts][kPanel];

    OCTAVO_INLINE vf at(int group, int column) const { return load(values[group] + column); }

    template <class Source>
    void fill(const Source& from, int num_groups) {
        for (int group = 0; group < num_groups * kParts; ++group)
            for (int v = 0; v < kPanel; v += W) store(values[group] + v, from.at(group, v));
    }
};

// Where the rows and sums of one tile lie, and from which of the panel's columns on.
struct CodesTile {
    const std::int8_t* x;  // the rows' codes of the stretch's first group
    const GroupHead* heads;
    std::int64_t row_bytes;
    float* sums;  // of column `column`; rows are kPanel apart
    int column;
    bool continues;
};

OCTAVO_INLINE const GroupHead& head_of(const CodesTile& t, int row) {
    return *reinterpret_cast<const GroupHead*>(reinterpret_cast<const char*>(t.heads) + row * t.row_bytes);
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
OCTAVO_INLINE vf plus_scaled(vf total, vi sums, vf scales, vf mins, const GroupHead& head) {
    total = fma(__builtin_convertvector(sums, vf) * scales, splat(head.scale), total);
    return kMins ? fma(mins, splat(head.shift), total) : total;
}

template <int kBits, int kGroup, bool kMins, int MR, int NV, class Scales>
inline __attribute__((noinline)) void codes_tile(const Stretch<kBits, kGroup>& stretch, const Scales& scales,
                                                 const Scales& mins, CodesTile t) {
    using S = Stretch<kBits, kGroup>;
    constexpr int kExcess = kBits == 8 ? kBias : kMins ? 0 : 8;  // that all weights went in with too much
    constexpr bool kHolds = MR == 1;  // totals in registers, which more rows need for the integer sums
    const int num_scales = stretch.num_groups * S::kParts;
    if (!t.continues)
        for (int m = 0; m < MR; ++m)
            for (int v = 0; v < NV; ++v) store(t.sums + m * kPanel + v * W, splat(0.0f));
    vf held[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) held[v] = load(t.sums + v * W);
    const char* codes = stretch.codes + t.column * 4;
    for (int at = 0; at < num_scales; ++at, codes += S::kCodeBytes / S::kParts, t.x += kGroup) {
        const int part = at % S::kParts;
        vi sums[MR][NV] = {};
        add_group<kBits, kGroup>(codes, t.x, t.row_bytes, sums);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
            const GroupHead& head = head_of(t, m);
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) {
                vi exact = kBits == 4 ? total_of_nibbles(sums[m][v]) : sums[m][v];
                if constexpr (kExcess > 0) exact -= splat_int(S::kParts == 1 ? head.sum : head.sums[part]) * kExcess;
                const vf scale = scales.at(at, t.column + v * W), min = kMins ? mins.at(at, t.column + v * W) : vf{};
                float* out = t.sums + m * kPanel + v * W;
                const vf total = plus_scaled<kMins>(kHolds ? held[v] : load(out), exact, scale, min, head);
                if constexpr (kHolds)
                    held[v] = total;
                else
                    store(out, total);
            }
        }
        if (part == S::kParts - 1) ++t.heads;
    }
    if constexpr (kHolds)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) store(t.sums + v * W, held[v]);
}

// A tile of `rows` <= kCodeRows rows (MR counts down to it) and all columns.
template <int kBits, int kGroup, bool kMins, int MR = kCodeRows, class Scales>
OCTAVO_INLINE void codes_tiles(int rows, const Stretch<kBits, kGroup>& stretch, const Scales& scales,
                               const Scales& mins, CodesTile t) {
    if constexpr (MR > 0) {
        if (rows < MR) return codes_tiles<kBits, kGroup, kMins, MR - 1>(rows, stretch, scales, mins, t);
        constexpr int NV = code_vectors(MR);
        for (; t.column < kPanel; t.column += NV * W, t.sums += NV * W)
            codes_tile<kBits, kGroup, kMins, MR, NV>(stretch, scales, mins, t);
    }
}

template <bool kValue>
struct Flag {
    static constexpr bool value = kValue;
};

// f(mins, steps): what panels of a kind have, as Flags.
template <int kGroup, class F>
OCTAVO_INLINE void with_flags(Codes kind, F&& f) {
    if constexpr (kGroup == 32)
        if (kind.has_mins) return kind.has_steps ? f(Flag<true>{}, Flag<true>{}) : f(Flag<true>{}, Flag<false>{});
    kind.has_steps ? f(Flag<false>{}, Flag<true>{}) : f(Flag<false>{}, Flag<false>{});
}

// f(stretch, its first group, stored scales, stored minimums) for every stretch of the panel.
template <int kBits, int kGroup, bool kSteps, class F>
OCTAVO_INLINE void each_stretch(const ProductArgs& args, F&& f) {
    Stretch<kBits, kGroup> stretch;
    const int num_groups = args.padded_in / stretch.kInputs;
    const char* at = static_cast<const char*>(args.panel.data);
    for (int group = 0; group < num_groups; group += kStretchGroups) {
        at = stretch.find(at, args.panel.codes, num_groups - group);
        f(stretch, group, Stored<kSteps>{stretch.scales, stretch.steps},
          Stored<kSteps>{stretch.mins, stretch.min_steps});
    }
}

template <int kBits, int kGroup>
OCTAVO_INLINE CodesTile tile_of(const ProductArgs& args, int row, int group) {
    const auto* x = static_cast<const std::int8_t*>(args.packed) + (args.first_row + row) * args.row_bytes;
    const auto* heads = reinterpret_cast<const GroupHead*>(x + args.padded_in) + group;
    float* sums = args.scratch + std::int64_t{row} * kPanel;
    return {x + group * Stretch<kBits, kGroup>::kInputs, heads, args.row_bytes, sums, 0, group > 0};
}

template <int kBits, int kGroup>
void product_codes(const ProductArgs& args) {
    with_flags<kGroup>(args.panel.codes, [&](auto has_mins, auto has_steps) {
        constexpr bool kMins = decltype(has_mins)::value, kSteps = decltype(has_steps)::value;
        if (args.num_rows == 1)  // what would be widened would be used only once
            return each_stretch<kBits, kGroup, kSteps>(args, [&](auto& stretch, int group, auto scales, auto mins) {
                codes_tiles<kBits, kGroup, kMins, 1>(1, stretch, scales, mins, tile_of<kBits, kGroup>(args, 0, group));
            });
        Widened<kBits, kGroup> scales, mins;
        each_stretch<kBits, kGroup, kSteps>(args, [&](auto& stretch, int group, auto stored, auto stored_mins) {
            scales.fill(stored, stretch.num_groups);
            if constexpr (kMins) mins.fill(stored_mins, stretch.num_groups);
            for (int row = 0; row < args.num_rows; row += kCodeRows) {
                const int rows = args.num_rows - row < kCodeRows ? args.num_rows - row : kCodeRows;
                const CodesTile tile = tile_of<kBits, kGroup>(args, row, group);
                codes_tiles<kBits, kGroup, kMins>(rows, stretch, scales, mins, tile);
            }
        });
    });
}

}  // namespace
