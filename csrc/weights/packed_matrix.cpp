// Packing weights into panels, and reading single rows of them back.

#include "weights/packed_matrix.h"

#include <algorithm>
#include <cstring>

#include "weights/floats.h"

namespace octavo {

namespace {

// f(super-block, its first input, its offset) for all super-blocks of a panel; returns their bytes in all.
template <class F>
std::int64_t each_super_block(Format format, QuantKind kind, int padded_in, F&& f) {
    const int inputs = super_block_inputs(format);
    std::int64_t at = 0;
    for (int first = 0; first < padded_in; first += inputs) {
        const SuperBlockLayout block = layout_of(format, kind, std::min(inputs, padded_in - first));
        f(block, first, at);
        at += block.num_bytes;
    }
    return at;
}

std::int64_t panel_bytes(const Part& part, int padded_in) {
    if (!is_quantized(part.format)) return std::int64_t{padded_in} * kPanel * traits_of(part.format).bits / 8;
    return each_super_block(part.format, part.kind, padded_in, [](const SuperBlockLayout&, int, std::int64_t) {});
}

// `num_rows` rows into neighboring columns of a panel, in words: a float32, or two bfloat16 of neighboring inputs. A
// run of inputs at a time, so that the part of the panel that all rows write to stays in the cache.
void pack_words(const char* values, int num_rows, std::int64_t row_bytes, int first_column, std::uint32_t* panel) {
    constexpr std::int64_t kRun = 32;
    const std::int64_t num_words = row_bytes / 4;
    for (std::int64_t first = 0; first < num_words; first += kRun) {
        const std::int64_t end = first + kRun < num_words ? first + kRun : num_words;
        for (int row = 0; row < num_rows; ++row) {
            const char* from = values + row * row_bytes;
            std::uint32_t* to = panel + first_column + row;
            for (std::int64_t word = first; word < end; ++word) std::memcpy(to + word * kPanel, from + word * 4, 4);
        }
    }
    if (row_bytes % 4 == 0) return;
    for (int row = 0; row < num_rows; ++row)  // an odd number of bfloat16: the last has no partner
        std::memcpy(panel + num_words * kPanel + first_column + row, values + row * row_bytes + num_words * 4, 2);
}

// Where code `i` of a column's group is: which byte, from the column's first on, and by how many bits it is shifted.
template <Format kFormat>
struct CodePlace {
    static constexpr FormatTraits kTraits = traits_of(kFormat);
    static_assert(8 % kTraits.bits == 0, "codes that do not fill a byte need a place of their own");
    static constexpr int kPartLen = kTraits.group_len * kTraits.bits / 8;  // neighbors that lie in the same bits

    static constexpr int byte(int i) { return i % kPartLen / 4 * kPanel * 4 + i % kPartLen % 4; }
    static constexpr int shift(int i) { return i / kPartLen * kTraits.bits; }
};

// Codes of one group of one column, `count` of them, to where they lie, with `excess` added. Four neighbors at a time,
// which lie side by side: every weight of a model comes by here.
template <Format kFormat>
void pack_group(const std::int8_t* codes, int count, int excess, std::uint8_t* to) {
    using Place = CodePlace<kFormat>;
    constexpr int kGroup = Place::kTraits.group_len;
    static_assert(Place::kPartLen % 4 == 0);
    std::int8_t padded[kGroup] = {};
    if (count < kGroup) {
        std::memcpy(padded, codes, static_cast<std::size_t>(count));
        codes = padded;
    }
    const std::uint32_t more = 0x01010101u * static_cast<std::uint32_t>(excess);
    for (int i = 0; i < kGroup; i += 4) {
        std::uint32_t four = 0, there = 0;
        std::memcpy(&four, codes + i, 4);
        four = ((four & 0x7f7f7f7fu) + more) ^ (four & 0x80808080u);  // in each byte by itself
        if (Place::shift(i) > 0) std::memcpy(&there, to + Place::byte(i), 4);
        four = there | four << Place::shift(i);
        std::memcpy(to + Place::byte(i), &four, 4);
    }
}

// One row into column `column` of a panel.
template <Format kFormat>
void pack_row(const QuantizedRows& from, int num_in, int padded_in, const PanelView& view, int column) {
    constexpr FormatTraits kTraits = traits_of(kFormat);
    const int excess = view.kind.has_mins ? 0 : kTraits.excess;
    char* panel = static_cast<char*>(const_cast<void*>(view.data));
    const auto pack_block = [&](const SuperBlockLayout& block, int first, std::int64_t offset_of_block) {
        char* at = panel + offset_of_block;
        const auto put_half = [&](int offset, int index, std::uint16_t half) {
            std::memcpy(at + offset + (index * kPanel + column) * 2, &half, 2);
        };
        const int first_scale = first / (view.kind.has_sub_scales ? kSuperBlockInputs : kTraits.group_len);
        for (int i = 0; i < block.num_scales; ++i) {
            put_half(0, i, from.scales[first_scale + i]);
            if (from.mins != nullptr) put_half(block.mins_at, i, from.mins[first_scale + i]);
        }
        for (int group = 0; group < block.num_groups; ++group) {
            const int input = first + group * kTraits.group_len, index = input / kTraits.group_len;
            const int own = group * kPanel + column;
            if (from.sub_scales != nullptr) at[block.sub_scales_at + own] = from.sub_scales[index];
            if (from.sub_mins != nullptr) at[block.sub_mins_at + own] = from.sub_mins[index];
            auto* to = reinterpret_cast<std::uint8_t*>(at) + block.codes_at + group * block.group_bytes + column * 4;
            const int count = std::max(0, std::min(kTraits.group_len, num_in - input));
            pack_group<kFormat>(from.codes + input, count, excess, to);
        }
    };
    each_super_block(kFormat, view.kind, padded_in, pack_block);
}

// One column of a super-block.
struct Column {
    const char* at;
    int number;

    float half(int place) const {
        std::uint16_t half;
        std::memcpy(&half, at + place + number * 2, 2);
        return from_half(half);
    }
    float sub_scale(int place) const { return static_cast<float>(static_cast<signed char>(at[place + number])); }
    int codes(int place) const { return static_cast<unsigned char>(at[place + number * 4]); }
};

// Code `i` of a column's group, whose codes begin at `at`.
template <Format kFormat>
int code_of(Column column, int at, int i, int excess) {
    using Place = CodePlace<kFormat>;
    constexpr int kBits = Place::kTraits.bits;
    const int bits = column.codes(at + Place::byte(i)) >> Place::shift(i) & ((1 << kBits) - 1);
    constexpr int kSign = Place::kTraits.excess == 0 ? 1 << (kBits - 1) : 0;  // of codes that are signed
    return (bits ^ kSign) - kSign - excess;
}

// The values of one group of a column, in float32: each product and each sum rounded once.
template <Format kFormat>
void unpack_group(const SuperBlockLayout& block, QuantKind kind, Column column, int group, int count, float* out) {
    const int scale_at = kind.has_sub_scales ? 0 : group * kPanel * 2, sub_scale_at = group * kPanel;
    const int excess = kind.has_mins ? 0 : traits_of(kFormat).excess;
    float scale = column.half(scale_at), min = kind.has_mins ? column.half(block.mins_at + scale_at) : 0.0f;
    if (kind.has_sub_scales) scale *= column.sub_scale(block.sub_scales_at + sub_scale_at);
    if (kind.has_sub_scales && kind.has_mins) min *= column.sub_scale(block.sub_mins_at + sub_scale_at);
    for (int i = 0; i < count; ++i) {
        const int code = code_of<kFormat>(column, block.codes_at + group * block.group_bytes, i, excess);
        const float product = static_cast<float>(code) * scale;
        out[i] = kind.has_mins ? product + min : product;
    }
}

template <Format kFormat>
void unpack_row(const PanelView& view, int column, int num_in, int padded_in, float* out) {
    constexpr int kGroup = traits_of(kFormat).group_len;
    const auto unpack_block = [&](const SuperBlockLayout& block, int first, std::int64_t offset_of_block) {
        const Column own{static_cast<const char*>(view.data) + offset_of_block, column};
        for (int group = 0; group < block.num_groups; ++group) {
            const int input = first + group * kGroup, count = std::min(kGroup, num_in - input);
            if (count > 0) unpack_group<kFormat>(block, view.kind, own, group, count, out + input);
        }
    };
    each_super_block(kFormat, view.kind, padded_in, unpack_block);
}

}  // namespace

Matrix::Matrix(Arena& arena, int num_in, const std::vector<Part>& parts, bool halves, bool widens)
    : num_in(num_in),
      input(widens && is_quantized(parts.front().format) ? Input::bfloat16 : traits_of(parts.front().format).input),
      halves(halves) {
    padded_in = padded_inputs(parts.front().format, num_in);
    std::vector<Panel> in_order;
    for (const Part& part : parts) {
        for (int row = 0; row < part.num_rows; row += kPanel) {
            const PanelView view{nullptr, panel_bytes(part, padded_in), part.format, part.kind};
            in_order.push_back({view, num_out + row, std::min(kPanel, part.num_rows - row)});
            num_bytes_ += view.num_bytes;
        }
        num_out += part.num_rows;
    }
    void* memory = nullptr;
    memory_ = arena.take(num_bytes_, &memory);
    panel_of_row_.resize(static_cast<std::size_t>(num_out));
    const int count = static_cast<int>(in_order.size());
    for (int index = 0; index < count; ++index) {
        const int from = !halves ? index : index % 2 == 0 ? index / 2 : count / 2 + index / 2;
        Panel panel = in_order[static_cast<std::size_t>(from)];
        panel.view.data = memory;
        memory = static_cast<char*>(memory) + panel.view.num_bytes;
        for (int i = 0; i < panel.num_columns; ++i) panel_of_row_[static_cast<std::size_t>(panel.first_out + i)] = index;
        panels.push_back(panel);
    }
}

// f(panel, first row, number of rows) for every panel that has some of the rows.
template <class F>
void Matrix::each_panel(Pool& pool, int first_row, int num_rows, F&& f) {
    std::vector<const Panel*> touched;
    for (int row = first_row; row < first_row + num_rows;) {
        touched.push_back(&panel_of(row));
        row = touched.back()->first_out + touched.back()->num_columns;
    }
    pool.each(static_cast<int>(touched.size()), [&](int unit, int) {
        const Panel& panel = *touched[static_cast<std::size_t>(unit)];
        const int begin = std::max(panel.first_out, first_row);
        f(panel, begin, std::min(panel.first_out + panel.num_columns, first_row + num_rows) - begin);
    });
}

void Matrix::fill(Pool& pool, int first_row, int num_rows, const void* values) {
    each_panel(pool, first_row, num_rows, [&](const Panel& panel, int begin, int count) {
        const std::int64_t row_bytes = std::int64_t{num_in} * traits_of(panel.view.format).bits / 8;
        pack_words(static_cast<const char*>(values) + (begin - first_row) * row_bytes, count, row_bytes,
                   begin - panel.first_out, static_cast<std::uint32_t*>(const_cast<void*>(panel.view.data)));
    });
}

void Matrix::fill(Pool& pool, int first_row, int num_rows, const QuantizedRows& rows) {
    each_panel(pool, first_row, num_rows, [&](const Panel& panel, int begin, int count) {
        const std::int64_t groups = padded_in / traits_of(panel.view.format).group_len;
        const std::int64_t scales = panel.view.kind.has_sub_scales ? padded_in / kSuperBlockInputs : groups;
        for (std::int64_t row = begin - first_row; row < begin - first_row + count; ++row) {
            const QuantizedRows one{rows.codes + row * num_in, rows.scales + row * scales,
                                    rows.mins == nullptr ? nullptr : rows.mins + row * scales,
                                    rows.sub_scales == nullptr ? nullptr : rows.sub_scales + row * groups,
                                    rows.sub_mins == nullptr ? nullptr : rows.sub_mins + row * groups};
            const int column = static_cast<int>(row) + first_row - panel.first_out;
            with_format(panel.view.format, [&](auto format) {
                constexpr Format kFormat = decltype(format)::value;
                if constexpr (is_quantized(kFormat)) pack_row<kFormat>(one, num_in, padded_in, panel.view, column);
            });
        }
    });
}

void Matrix::copy_row(int row, float* out) const {
    const PanelView& view = panel_of(row).view;
    const int column = row - panel_of(row).first_out;
    with_format(view.format, [&](auto format) {
        constexpr Format kFormat = decltype(format)::value;
        if constexpr (is_quantized(kFormat)) {
            unpack_row<kFormat>(view, column, num_in, padded_in, out);
            if (input == Input::bfloat16)
                for (int i = 0; i < num_in; ++i) out[i] = from_bf16(Bfloat16::of(out[i]));
        } else if constexpr (kFormat == Format::float32) {
            const auto* values = static_cast<const float*>(view.data);
            for (int i = 0; i < num_in; ++i) out[i] = values[std::int64_t{i} * kPanel + column];
        } else {
            static_assert(kFormat == Format::bfloat16);
            const auto* words = static_cast<const std::uint16_t*>(view.data);
            for (int i = 0; i < num_in; ++i)
                out[i] = from_bf16(words[(std::int64_t{i} / 2 * kPanel + column) * 2 + i % 2]);
        }
    });
}

}  // namespace octavo
