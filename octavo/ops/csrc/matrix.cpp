// Packing weights, and the blocks of keys and values.

#include <cstring>

#include "program.h"

namespace octavo {

namespace {

constexpr int kInputsPadded = 32;  // bfloat16: whole tiles of the matrix unit

int item_bytes(Dtype dtype) { return dtype == Dtype::bfloat16 ? 2 : 4; }

// Both layouts put kPanel columns side by side, bfloat16 in pairs of inputs.
template <class T>
void pack_panel_rows(const T* values, int num_rows, int num_in, int first_column, T* panel) {
    constexpr int kPair = sizeof(T) == 2 ? 2 : 1;
    for (int first = 0; first < num_in; first += 64) {
        const int end = first + 64 < num_in ? first + 64 : num_in;
        for (int row = 0; row < num_rows; ++row) {
            const T* from = values + std::int64_t{row} * num_in;
            T* to = panel + (first_column + row) * kPair;
            for (int i = first; i < end; ++i) to[i / kPair * kPanel * kPair + i % kPair] = from[i];
        }
    }
}

}  // namespace

Matrix::Matrix(int num_out, int num_in, Dtype dtype, bool halves) : halves(halves) {
    const int padded = dtype == Dtype::bfloat16 ? (num_in + kInputsPadded - 1) / kInputsPadded * kInputsPadded : num_in;
    const std::int64_t panel_bytes = std::int64_t{padded} * kPanel * item_bytes(dtype);
    const std::int64_t num_panels = (num_out + kPanel - 1) / kPanel;
    memory_ = Memory(panel_bytes * num_panels);
    view = {memory_.as<void>(), nullptr, panel_bytes, num_out, num_in, padded, dtype};
}

int Matrix::first_out(int panel) const {
    if (!halves) return panel * kPanel;
    return (panel % 2 == 0 ? 0 : view.num_out / 2) + panel / 2 * kPanel;
}

void Matrix::fill(Pool& pool, int first_row, int num_rows, const void* values) {
    const int first_part = first_row / kPanel, last_part = (first_row + num_rows - 1) / kPanel;
    const int half_panels = view.num_out / 2 / kPanel;
    pool.each(last_part - first_part + 1, [&](int unit, int) {
        const int part = first_part + unit;
        const int begin = part * kPanel > first_row ? part * kPanel : first_row;
        const int end = (part + 1) * kPanel < first_row + num_rows ? (part + 1) * kPanel : first_row + num_rows;
        const int index = !halves ? part : part < half_panels ? 2 * part : 2 * (part - half_panels) + 1;
        const auto pack = [&](auto* to, const auto* from) {
            pack_panel_rows(from + std::int64_t{begin - first_row} * view.num_in, end - begin, view.num_in,
                            begin - part * kPanel, to);
        };
        void* to = const_cast<void*>(panel(index));
        if (view.dtype == Dtype::bfloat16)
            pack(static_cast<std::uint16_t*>(to), static_cast<const std::uint16_t*>(values));
        else
            pack(static_cast<float*>(to), static_cast<const float*>(values));
    });
}

void Matrix::copy_row(int row, float* out) const {
    const void* from = panel(row / kPanel);
    const int column = row % kPanel;
    if (view.dtype == Dtype::float32) {
        for (int i = 0; i < view.num_in; ++i) out[i] = static_cast<const float*>(from)[i * kPanel + column];
        return;
    }
    const auto* words = static_cast<const std::uint16_t*>(from);
    for (int i = 0; i < view.num_in; ++i) {
        const std::uint32_t bits = std::uint32_t{words[(i / 2 * kPanel + column) * 2 + i % 2]} << 16;
        std::memcpy(out + i, &bits, 4);
    }
}

Cache::Cache(int num_blocks, int block_size, int num_kv_heads, int head_dim, Dtype dtype)
    : view{nullptr, num_blocks, block_size, num_kv_heads, head_dim, dtype},
      block_bytes_(std::int64_t{2} * block_size * num_kv_heads * head_dim * item_bytes(dtype)) {
    memory = Memory(block_bytes_ * num_blocks);
    view.blocks = memory.as<void>();
}

void Cache::copy_block(std::int64_t from, std::int64_t to) {
    char* blocks = memory.as<char>();
    std::memcpy(blocks + to * block_bytes_, blocks + from * block_bytes_, static_cast<std::size_t>(block_bytes_));
}

}  // namespace octavo
