// The formats that packed weights are held in. A row of `kFormats` is all that packing, products, the border to Python
// and `_convert` know of a format; what a panel's bytes are is said here too, once for who writes and who reads them.
//
// For the files that are compiled once for each instruction set as well: so only plain data stands here, and functions
// that are `static`, of which the linker never takes one file's copy for another's.
#pragma once

#include <cstdint>

namespace octavo {

constexpr int kPanel = 32;  // columns (outputs) of a matrix that lie side by side

// What a product takes its input as: every format has one of these. All parts of a matrix have the same.
enum class Input : int { float32 = 0, bfloat16, groups_of_32, groups_of_64 };
constexpr int kNumInputs = static_cast<int>(Input::groups_of_64) + 1;

struct InputTraits {
    Input input;
    int group_len;  // inputs of a row that become int8 codes with one scale; 0: floats
    int padding;  // a row's inputs are padded with zeros to a multiple of it
};

constexpr InputTraits kInputs[] = {
    {Input::float32, 0, 1},
    {Input::bfloat16, 0, 32},  // whole tiles of the matrix unit
    {Input::groups_of_32, 32, 32},
    {Input::groups_of_64, 64, 64},
};

// How a panel's weights are held. Quantized formats are named by a code's bits and by how many inputs share a scale.
enum class Format : int { float32 = 0, bfloat16, int4_32, int8_16, int8_32, int8_64 };
constexpr int kNumFormats = static_cast<int>(Format::int8_64) + 1;

struct FormatTraits {
    Format format;
    const char* name;
    Input input;
    int bits;  // of a weight in a panel
    int group_len;  // inputs that share a scale; 0: floats
    int excess;  // added to the codes of panels without minimums, so that none is negative; 0: codes are signed bytes
    bool may_have_mins;
};

constexpr FormatTraits kFormats[] = {
    {Format::float32, "float32", Input::float32, 32, 0, 0, false},
    {Format::bfloat16, "bfloat16", Input::bfloat16, 16, 0, 0, false},
    {Format::int4_32, "int4_32", Input::groups_of_32, 4, 32, 8, true},
    {Format::int8_16, "int8_16", Input::groups_of_32, 8, 16, 0, false},
    {Format::int8_32, "int8_32", Input::groups_of_32, 8, 32, 0, true},
    {Format::int8_64, "int8_64", Input::groups_of_64, 8, 64, 0, false},
};

static constexpr const InputTraits& traits_of(Input input) { return kInputs[static_cast<int>(input)]; }
static constexpr const FormatTraits& traits_of(Format format) { return kFormats[static_cast<int>(format)]; }
static constexpr bool is_quantized(Format format) { return traits_of(format).group_len > 0; }

// What a quantized panel has beside its codes and scales. value = code * scale, or code * scale + minimum.
//
// Sub-scales are those of super-blocks (GGML's K-quants): a group's scale is its int8 sub-scale times the float16 scale
// of the super-block of kSuperBlockInputs inputs around it; minimums likewise.
struct QuantKind {
    bool has_mins;
    bool has_sub_scales;
};
constexpr int kSuperBlockInputs = 256;

// A panel of any quantized format is laid out by super-blocks of so many groups, of the inputs that share a row's
// scale.
constexpr int kSuperBlockGroups = 8;

static constexpr int super_block_inputs(Format format) {
    return kSuperBlockGroups * traits_of(traits_of(format).input).group_len;
}

static constexpr bool may_have_sub_scales(Format format) { return super_block_inputs(format) == kSuperBlockInputs; }

static constexpr int padded_inputs(Format format, int num_in) {
    const int padding = traits_of(traits_of(format).input).padding;
    return (num_in + padding - 1) / padding * padding;
}

// A panel: kPanel outputs of a packed matrix [num_out, num_in], inputs padded with zeros to `padded_in`.
//
// float32: an input's kPanel weights, input after input. bfloat16: for every pair of inputs the kPanel pairs of weights
// next to each other, in 32-bit words, the even input in the lower half.
//
// Quantized: super-block after super-block, the last as short as it is. Each has, for all columns, float16 scales
// [groups, kPanel], then, where there are such, minimums [groups, kPanel] (with sub-scales both are [kPanel]), then
// sub-scales int8 [groups, kPanel] and those of the minimums int8 [groups, kPanel]; then the codes, group by group,
// four neighboring inputs of a column together: int8 [group / 4, kPanel, 4]. Of int4, byte [q, column, i] holds input
// 4q + i in its low half and input 4q + i + 16 in its high one.
struct PanelView {
    const void* data;
    std::int64_t num_bytes;
    Format format;
    QuantKind kind;
};

// Where the parts of one super-block lie, in bytes. Of two neighboring columns, scales and minimums lie 2 bytes apart,
// sub-scales 1, and codes 4.
struct SuperBlockLayout {
    int num_groups;  // each with a scale, or sub-scale, of its own
    int num_scales;  // float16: as many as groups, or one
    int mins_at, sub_scales_at, sub_mins_at, codes_at;
    int group_bytes;  // of the codes of a group, all columns
    int num_bytes;
};

static constexpr SuperBlockLayout layout_of(Format format, QuantKind kind, int num_inputs) {
    const FormatTraits& traits = traits_of(format);
    SuperBlockLayout block{};
    block.num_groups = num_inputs / traits.group_len;
    block.num_scales = kind.has_sub_scales ? 1 : block.num_groups;
    block.mins_at = block.num_scales * kPanel * 2;
    block.sub_scales_at = block.mins_at * (kind.has_mins ? 2 : 1);
    const int sub_bytes = kind.has_sub_scales ? block.num_groups * kPanel : 0;
    block.sub_mins_at = block.sub_scales_at + sub_bytes;
    block.codes_at = block.sub_mins_at + (kind.has_mins ? sub_bytes : 0);
    block.group_bytes = traits.group_len * kPanel * traits.bits / 8;
    block.num_bytes = block.codes_at + block.num_groups * block.group_bytes;
    return block;
}

// A format as a type: what is given one is compiled for it alone.
template <Format kFormat>
struct FormatConstant {
    static constexpr Format value = kFormat;
};

// f(FormatConstant) for every format.
template <int kAt = 0, class F>
static constexpr void each_format(F&& f) {
    if constexpr (kAt < kNumFormats) {
        f(FormatConstant<kFormats[kAt].format>{});
        each_format<kAt + 1>(f);
    }
}

// f(FormatConstant) for `format`.
template <int kAt = 0, class F>
static constexpr void with_format(Format format, F&& f) {
    if constexpr (kAt < kNumFormats) {
        if (format == kFormats[kAt].format) return f(FormatConstant<kFormats[kAt].format>{});
        with_format<kAt + 1>(format, f);
    }
}

// What every row must keep to, and that none is missing or out of place.

static constexpr bool are_inputs_in_order() {
    for (int i = 0; i < kNumInputs; ++i)
        if (kInputs[i].input != static_cast<Input>(i) || kInputs[i].padding < 1) return false;
    return true;
}

static constexpr bool are_formats_in_order() {
    for (int i = 0; i < kNumFormats; ++i)
        if (kFormats[i].format != static_cast<Format>(i)) return false;
    return true;
}

// A group of weights lies whole within a group of the row's inputs, and that within the padding.
static constexpr bool do_groups_fit() {
    for (const FormatTraits& format : kFormats) {
        const InputTraits& input = traits_of(format.input);
        if ((format.group_len > 0) != (input.group_len > 0)) return false;
        if (format.group_len == 0) continue;
        if (input.group_len % format.group_len != 0 || input.padding != input.group_len) return false;
    }
    return true;
}

static_assert(sizeof kInputs / sizeof *kInputs == kNumInputs && are_inputs_in_order(), "kInputs: a row for each Input");
static_assert(sizeof kFormats / sizeof *kFormats == kNumFormats && are_formats_in_order(),
              "kFormats: a row for each Format");
static_assert(do_groups_fit(), "kFormats: groups of weights and of inputs do not fit each other");

}  // namespace octavo
