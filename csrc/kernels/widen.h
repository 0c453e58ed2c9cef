// Quantized panels widened into panels of bfloat16, for products that take their input as bfloat16. A weight is what its
// format means (see PanelView), in float32, rounded to the nearest bfloat16: the same in every ISA variant.
//
// Scales are float16 and codes and sub-scales 8 bits at most, so every value is a whole multiple of 2^-24: none is
// denormal, none infinite.
#pragma once

#include "kernels/gemm_int8.h"

namespace {

// How two vectors of values become 32-bit words that hold two bfloat16 each, the first in the lower half.
struct PlainPairs {
    // As round_to_bf16 does where nothing is NaN.
    static OCTAVO_INLINE vu rounded(vf x) {
        const vu bits = (vu)x;
        return bits + 0x7fffu + (bits >> 16 & 1u);
    }
    static OCTAVO_INLINE vu of(vf even, vf odd) { return rounded(even) >> 16 | (rounded(odd) & 0xffff0000u); }
};

// The values of a vector's columns in one group, from bytes of their words.
template <Format kFormat, bool kMins, bool kSubScales>
struct GroupValues {
    using Shape = GroupShape<kFormat>;
    // A product of so few bits is exact, so that one fused with the sum rounds what two steps would.
    static constexpr bool kFused = kMins && (Shape::kBits == 4 || !kSubScales);
    static constexpr int kExcess = Shape::kBits == 8 ? 128 : kMins ? 0 : Shape::kTraits.excess;
    static constexpr bool kHasMins = kMins;
    static constexpr std::uint32_t kMask = (1u << Shape::kBits) - 1;

    vf scales, mins;

    // The codes at bits kShift and up, kExcess more than they count, in the last bits of 2^23 and something.
    template <int kShift>
    OCTAVO_INLINE vf at(vu words) const {
        const vf code = (vf)((words >> kShift & kMask) | 0x4b000000u) - (8388608.0f + kExcess);
        if constexpr (kFused) return fma(code, scales, mins);
        return kMins ? code * scales + mins : code * scales;
    }
};

// Four neighboring inputs of a vector's columns, whose codes are at bits kFirst and up of the words' bytes.
template <class Pairs, int kFirst, class Values>
OCTAVO_INLINE void widen_four(vu words, const Values& values, std::uint32_t* to) {
    const vu low = Pairs::of(values.template at<kFirst>(words), values.template at<kFirst + 8>(words));
    const vu high = Pairs::of(values.template at<kFirst + 16>(words), values.template at<kFirst + 24>(words));
    std::memcpy(to, &low, sizeof low);
    std::memcpy(to + kPanel, &high, sizeof high);
}

// kGroup inputs of all columns; codes as they lie.
template <class Pairs, class Values, class Scales>
OCTAVO_INLINE void widen_group(const char* codes, const Scales& scales, const Scales& mins, int group,
                               std::uint32_t* to) {
    using Shape = typename Values::Shape;
    constexpr int kQuads = Shape::kGroupBytes / (4 * kPanel);
    for (int v = 0; v < kPanel; v += W) {
        Values values{scales.at(group, v), {}};
        if constexpr (Values::kHasMins) values.mins = mins.at(group, v);
        for (int quad = 0; quad < kQuads; ++quad) {
            const vu words = load_as<vu>(codes + quad * kPanel * 4 + v * 4);
            std::uint32_t* first = to + quad * 2 * kPanel + v;
            if constexpr (Shape::kBits == 4) {
                widen_four<Pairs, 0>(words, values, first);
                widen_four<Pairs, 4>(words, values, first + Shape::kGroup / 4 * kPanel);
            } else {
                widen_four<Pairs, 0>(words ^ 0x80808080u, values, first);
            }
        }
    }
}

// See Kernels::widen.
template <Format kFormat, class Pairs>
void widen_panel(const PanelView& panel, int padded_in, std::uint32_t* to) {
    using Shape = GroupShape<kFormat>;
    with_flags<kFormat>(panel.kind, [&](auto has_mins, auto has_sub_scales) {
        constexpr bool kMins = decltype(has_mins)::value, kSubScales = decltype(has_sub_scales)::value;
        using Values = GroupValues<kFormat, kMins, kSubScales>;
        each_super_block<kFormat, kMins, kSubScales>(
            panel, padded_in, true, [&](const SuperBlock& block, int, auto scales, auto mins) {
                const char* codes = block.codes;
                for (int group = 0; group < block.num_groups; ++group, codes += Shape::kGroupBytes) {
                    fetch_ahead(codes, Shape::kGroupBytes);
                    widen_group<Pairs, Values>(codes, scales, mins, group, to);
                    to += Shape::kGroup / 2 * kPanel;
                }
            });
    });
}

}  // namespace
