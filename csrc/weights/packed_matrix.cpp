// Packing weights into panels, and reading single rows of them back.

#include "weights/packed_matrix.h"

#include <algorithm>
#include <cstring>

#include "core/util.h"

namespace octavo {

namespace {

constexpr int kInputsPadded = 32;  // bfloat16: whole tiles of the matrix unit

bool is_quantized(Format format) { return format != Format::float32 && format != Format::bfloat16; }

int group_len(Format format) { return format == Format::int8_16 ? 16 : format == Format::int8_64 ? 64 : 32; }

Input input_of(Format format) {
    switch (format) {
        case Format::float32: return Input::float32;
        case Format::bfloat16: return Input::bfloat16;
        case Format::int8_64: return Input::groups_of_64;
        default: return Input::groups_of_32;
    }
}

int padded_inputs(Format format, int num_in) {
    switch (format) {
        case Format::float32: return num_in;
        case Format::bfloat16: return ceil_div(num_in, kInputsPadded) * kInputsPadded;
        case Format::int8_64: return ceil_div(num_in, 64) * 64;
        default: return ceil_div(num_in, 32) * 32;
    }
}

// Where the parts of one super-block of a panel lie, in bytes; see PanelView. Each of `groups` has its own scale or
// sub-scale. What is packed by this is read by SuperBlockReader in kernels/gemm_int8.h.
struct SuperBlockLayout {
    SuperBlockLayout(Format format, QuantKind kind, int inputs)
        : group(group_len(format)),
          inputs(inputs),
          groups(inputs / group),
          scales(kind.has_sub_scales ? 1 : groups),
          mins_at(scales * kPanel * 2),
          sub_scales_at(mins_at * (kind.has_mins ? 2 : 1)),
          sub_mins_at(sub_scales_at + (kind.has_sub_scales ? groups * kPanel : 0)),
          codes_at(sub_mins_at + (kind.has_sub_scales && kind.has_mins ? groups * kPanel : 0)),
          code_bits(format == Format::int4_32 ? 4 : 8),
          bytes(codes_at + inputs * kPanel * code_bits / 8) {}

    int group, inputs, groups, scales, mins_at, sub_scales_at, sub_mins_at, codes_at, code_bits, bytes;
};

int super_block_inputs(Format format) { return kSuperBlockGroups * std::max(group_len(format), 32); }

// f(super-block, its first input, its offset) for all super-blocks of a panel; returns their bytes in all.
template <class F>
std::int64_t each_super_block(Format format, QuantKind kind, int padded_in, F&& f) {
    std::int64_t at = 0;
    for (int first = 0; first < padded_in; first += super_block_inputs(format)) {
        const SuperBlockLayout block(format, kind, std::min(super_block_inputs(format), padded_in - first));
        f(block, first, at);
        at += block.bytes;
    }
    return at;
}

std::int64_t panel_bytes(const Part& part, int padded_in) {
    if (part.format == Format::float32) return std::int64_t{padded_in} * kPanel * 4;
    if (part.format == Format::bfloat16) return std::int64_t{padded_in} * kPanel * 2;
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

// Codes of one group of one column, `count` of them, to where they lie; those of int4 with `offset` added.
void pack_group(const std::int8_t* codes, int count, const SuperBlockLayout& layout, int offset, std::uint8_t* to) {
    if (layout.code_bits == 8) {
        for (int i = 0; i < count; ++i) to[i / 4 * kPanel * 4 + i % 4] = static_cast<std::uint8_t>(codes[i]);
        return;
    }
    for (int i = 0; i < layout.group; ++i) {
        const int code = (i < count ? codes[i] : 0) + offset, low = i % 16;
        to[low / 4 * kPanel * 4 + low % 4] |= static_cast<std::uint8_t>(i < 16 ? code : code << 4);
    }
}

// One row into column `column` of a panel.
void pack_codes(const CodeRows& from, int num_in, int padded_in, const PanelView& view, int column) {
    const int offset = view.kind.has_mins ? 0 : 8;
    char* panel = static_cast<char*>(const_cast<void*>(view.data));
    const auto pack_block = [&](const SuperBlockLayout& block, int first, std::int64_t offset_of_block) {
        char* at = panel + offset_of_block;
        const auto put_half = [&](int offset, int index, std::uint16_t half) {
            std::memcpy(at + offset + (index * kPanel + column) * 2, &half, 2);
        };
        const int first_scale = view.kind.has_sub_scales ? first / kSuperBlockInputs : first / block.group;
        for (int i = 0; i < block.scales; ++i) {
            put_half(0, i, from.scales[first_scale + i]);
            if (from.mins != nullptr) put_half(block.mins_at, i, from.mins[first_scale + i]);
        }
        for (int group = 0; group < block.groups; ++group) {
            const int index = first / block.group + group, input = first + group * block.group;
            if (from.sub_scales != nullptr) at[block.sub_scales_at + group * kPanel + column] = from.sub_scales[index];
            if (from.sub_mins != nullptr) at[block.sub_mins_at + group * kPanel + column] = from.sub_mins[index];
            auto* to = reinterpret_cast<std::uint8_t*>(at) + block.codes_at + column * 4 +
                       group * block.group * kPanel * block.code_bits / 8;
            pack_group(from.codes + input, std::max(0, std::min(block.group, num_in - input)), block, offset, to);
        }
    };
    each_super_block(view.format, view.kind, padded_in, pack_block);
}

float half_at(const char* at) {
    std::uint16_t half;
    std::memcpy(&half, at, 2);
    const std::uint32_t bits = std::uint32_t{half & 0x7fffu} << 13;
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude *= 0x1p112f;
    return (half & 0x8000u) != 0 ? -magnitude : magnitude;
}

// One column of a super-block: its scales lie 2 bytes apart from the next column's, its sub-scales 1, its codes 4.
struct Column {
    const char* at;
    int number;
    float half(int place) const { return half_at(at + place + number * 2); }
    float sub_scale(int place) const { return static_cast<float>(byte(place + number)); }
    int code(int place) const { return byte(place + number * 4); }
    int byte(int place) const { return static_cast<signed char>(at[place]); }
};

// The values of one group of a column, in float32: each product and each sum rounded once.
void unpack_group(const SuperBlockLayout& block, QuantKind kind, Column column, int group, int count, float* out) {
    const int scale_at = kind.has_sub_scales ? 0 : group * kPanel * 2, sub_scale_at = group * kPanel;
    const int codes_at = block.codes_at + group * block.group * kPanel * block.code_bits / 8;
    float scale = column.half(scale_at), min = kind.has_mins ? column.half(block.mins_at + scale_at) : 0.0f;
    if (kind.has_sub_scales) scale *= column.sub_scale(block.sub_scales_at + sub_scale_at);
    if (kind.has_sub_scales && kind.has_mins) min *= column.sub_scale(block.sub_mins_at + sub_scale_at);
    for (int i = 0; i < count; ++i) {
        const int low = block.code_bits == 4 ? i % 16 : i;
        int code = column.code(codes_at + low / 4 * kPanel * 4 + low % 4);
        if (block.code_bits == 4) code = (i < 16 ? code & 15 : code >> 4 & 15) - (kind.has_mins ? 0 : 8);
        const float product = static_cast<float>(code) * scale;
        out[i] = kind.has_mins ? product + min : product;
    }
}

void unpack_codes(const PanelView& view, int column, int num_in, int padded_in, float* out) {
    const auto unpack_block = [&](const SuperBlockLayout& block, int first, std::int64_t offset_of_block) {
        const Column own{static_cast<const char*>(view.data) + offset_of_block, column};
        for (int group = 0; group < block.groups; ++group) {
            const int input = first + group * block.group, count = std::min(block.group, num_in - input);
            if (count > 0) unpack_group(block, view.kind, own, group, count, out + input);
        }
    };
    each_super_block(view.format, view.kind, padded_in, unpack_block);
}

}  // namespace

Matrix::Matrix(Arena& arena, int num_in, const std::vector<Part>& parts, bool halves)
    : num_in(num_in), input(input_of(parts.front().format)), halves(halves) {
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
        const std::int64_t row_bytes = std::int64_t{num_in} * (panel.view.format == Format::bfloat16 ? 2 : 4);
        pack_words(static_cast<const char*>(values) + (begin - first_row) * row_bytes, count, row_bytes,
                   begin - panel.first_out, static_cast<std::uint32_t*>(const_cast<void*>(panel.view.data)));
    });
}

void Matrix::fill(Pool& pool, int first_row, int num_rows, const CodeRows& rows) {
    each_panel(pool, first_row, num_rows, [&](const Panel& panel, int begin, int count) {
        const std::int64_t groups = padded_in / group_len(panel.view.format);
        const std::int64_t scales = panel.view.kind.has_sub_scales ? padded_in / kSuperBlockInputs : groups;
        for (std::int64_t row = begin - first_row; row < begin - first_row + count; ++row) {
            const CodeRows one{rows.codes + row * num_in, rows.scales + row * scales,
                               rows.mins == nullptr ? nullptr : rows.mins + row * scales,
                               rows.sub_scales == nullptr ? nullptr : rows.sub_scales + row * groups,
                               rows.sub_mins == nullptr ? nullptr : rows.sub_mins + row * groups};
            pack_codes(one, num_in, padded_in, panel.view, static_cast<int>(row) + first_row - panel.first_out);
        }
    });
}

void Matrix::copy_row(int row, float* out) const {
    const Panel& panel = panel_of(row);
    const int column = row - panel.first_out;
    if (is_quantized(panel.view.format)) return unpack_codes(panel.view, column, num_in, padded_in, out);
    if (panel.view.format == Format::float32) {
        const auto* values = static_cast<const float*>(panel.view.data);
        for (int i = 0; i < num_in; ++i) out[i] = values[std::int64_t{i} * kPanel + column];
        return;
    }
    const auto* words = static_cast<const std::uint16_t*>(panel.view.data);
    for (int i = 0; i < num_in; ++i) {
        const std::uint32_t bits = std::uint32_t{words[(std::int64_t{i} / 2 * kPanel + column) * 2 + i % 2]} << 16;
        std::memcpy(out + i, &bits, 4);
    }
}

}  // namespace octavo
