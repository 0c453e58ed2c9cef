// Products with panels of whole numbers: a row's values become bytes, group by group, and only the sums of a group's
// integer products are scaled and added up, in float32 and in the order of the groups.
#pragma once

#include "dot.h"
#include "kernels.h"
#include "rows.h"

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

// One stretch of a panel: its codes as they lie, its scales and minimums in float32.
template <int kBits, int kGroup>
struct Stretch {
    static constexpr int kInputs = kGroup < 32 ? 32 : kGroup;  // that a row's scale counts for
    static constexpr int kParts = kInputs / kGroup;
    static constexpr std::int64_t kCodeBytes = std::int64_t{kInputs} * kPanel * kBits / 8;

    alignas(64) float scales[kStretchGroups * kParts][kPanel];
    alignas(64) float mins[kStretchGroups * kParts][kPanel];
    const char* codes;
    int num_groups;

    // The stretch that begins at `at`, of at most `left` groups. Returns where the next one begins.
    const char* read(const char* at, Codes kind, int left) {
        num_groups = left < kStretchGroups ? left : kStretchGroups;
        const int num_scales = num_groups * kParts * kPanel;
        const auto* halves = reinterpret_cast<const std::uint16_t*>(at);
        if (kind.has_steps) {
            const std::uint16_t* half_mins = halves + kPanel;
            const auto* steps = reinterpret_cast<const std::int8_t*>(halves + (kind.has_mins ? 2 : 1) * kPanel);
            times_steps(halves, steps, scales);
            if (kind.has_mins) times_steps(half_mins, steps + num_scales, mins);
            codes = reinterpret_cast<const char*>(steps + (kind.has_mins ? 2 : 1) * num_scales);
        } else {
            widen_all(halves, num_scales, scales[0]);
            if (kind.has_mins) widen_all(halves + num_scales, num_scales, mins[0]);
            codes = reinterpret_cast<const char*>(halves + (kind.has_mins ? 2 : 1) * num_scales);
        }
        return codes + num_groups * kCodeBytes;
    }

    static void widen_all(const std::uint16_t* halves, int count, float* out) {
        for (int i = 0; i < count; i += W) store(out + i, load_half(halves + i));
    }

    static void times_steps(const std::uint16_t* halves, const std::int8_t* steps, float (*out)[kPanel]) {
        for (int v = 0; v < kPanel; v += W) {
            const vf scale = load_half(halves + v);
            for (int group = 0; group < kStretchGroups * kParts; ++group)
                store(out[group] + v, scale * load(steps + group * kPanel + v));
        }
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
        if constexpr (kBits == 4) {
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

// out += sums * scales * the row's scale (+ minimums * its shift), W columns of one row and group. All products end here:
// their bits are the same whatever made the integer sums.
template <bool kMins>
OCTAVO_INLINE void add_scaled(float* out, vi sums, const float* scales, const float* mins, const GroupHead& head) {
    vf total = fma(__builtin_convertvector(sums, vf) * load(scales), splat(head.scale), load(out));
    if constexpr (kMins) total = fma(load(mins), splat(head.shift), total);
    store(out, total);
}

template <int kBits, int kGroup, bool kMins, int MR, int NV>
inline __attribute__((noinline)) void codes_tile(const Stretch<kBits, kGroup>& stretch, CodesTile t) {
    using S = Stretch<kBits, kGroup>;
    constexpr int kExcess = kBits == 8 ? kBias : kMins ? 0 : 8;  // that all weights went in with too much
    const int num_groups = stretch.num_groups;
    if (!t.continues)
        for (int m = 0; m < MR; ++m)
            for (int v = 0; v < NV; ++v) store(t.sums + m * kPanel + v * W, splat(0.0f));
    const char* codes = stretch.codes + t.column * 4;
    const float *scales = stretch.scales[0] + t.column, *mins = stretch.mins[0] + t.column;
    for (int group = 0; group < num_groups; ++group, codes += S::kCodeBytes, t.x += S::kInputs, ++t.heads)
        for (int part = 0; part < S::kParts; ++part, scales += kPanel, mins += kPanel) {
            vi sums[MR][NV] = {};
            add_group<kBits, kGroup>(codes + part * (S::kCodeBytes / S::kParts), t.x + part * kGroup, t.row_bytes,
                                     sums);
#pragma GCC unroll 8
            for (int m = 0; m < MR; ++m) {
                const GroupHead& head = head_of(t, m);
#pragma GCC unroll 4
                for (int v = 0; v < NV; ++v) {
                    vi exact = kBits == 4 ? total_of_nibbles(sums[m][v]) : sums[m][v];
                    if constexpr (kExcess > 0) exact -= splat_int(S::kParts == 1 ? head.sum : head.sums[part]) * kExcess;
                    add_scaled<kMins>(t.sums + m * kPanel + v * W, exact, scales + v * W, mins + v * W, head);
                }
            }
        }
}

// A tile of `rows` <= kCodeRows rows (MR counts down to it) and all columns.
template <int kBits, int kGroup, bool kMins, int MR = kCodeRows>
OCTAVO_INLINE void codes_tiles(int rows, const Stretch<kBits, kGroup>& stretch, CodesTile t) {
    if constexpr (MR > 0) {
        if (rows < MR) return codes_tiles<kBits, kGroup, kMins, MR - 1>(rows, stretch, t);
        constexpr int NV = code_vectors(MR);
        for (; t.column < kPanel; t.column += NV * W, t.sums += NV * W)
            codes_tile<kBits, kGroup, kMins, MR, NV>(stretch, t);
    }
}

template <int kBits, int kGroup>
void product_codes(const ProductArgs& args) {
    using S = Stretch<kBits, kGroup>;
    S stretch;
    const Codes kind = args.panel.codes;
    const int num_groups = args.padded_in / S::kInputs;
    const char* at = static_cast<const char*>(args.panel.data);
    for (int group = 0; group < num_groups; group += kStretchGroups) {
        at = stretch.read(at, kind, num_groups - group);
        for (int row = 0; row < args.num_rows; row += kCodeRows) {
            const int rows = args.num_rows - row < kCodeRows ? args.num_rows - row : kCodeRows;
            const auto* x = static_cast<const std::int8_t*>(args.packed) + (args.first_row + row) * args.row_bytes;
            const auto* heads = reinterpret_cast<const GroupHead*>(x + args.padded_in) + group;
            const CodesTile tile{x + group * S::kInputs, heads, args.row_bytes,
                                 args.scratch + std::int64_t{row} * kPanel, 0, group > 0};
            if constexpr (kGroup == 32)
                if (kind.has_mins) {
                    codes_tiles<kBits, kGroup, true>(rows, stretch, tile);
                    continue;
                }
            codes_tiles<kBits, kGroup, false>(rows, stretch, tile);
        }
    }
}

}  // namespace
