// Packing weights, and the blocks of keys and values.

#include <cstring>
#include <utility>

#include "program.h"

namespace octavo {

namespace {

constexpr int kInputsPadded = 32;  // bfloat16: whole tiles of the matrix unit

int item_bytes(Dtype dtype) { return dtype == Dtype::bfloat16 ? 2 : 4; }

// `num_rows` rows into neighbouring columns of a panel, in words: a float32, or two bfloat16 of neighbouring inputs. A
// stretch of inputs at a time, so that the part of the panel that all rows write to stays in the cache.
void pack_words(const char* values, int num_rows, std::int64_t row_bytes, int first_column, std::uint32_t* panel) {
    constexpr std::int64_t kStretch = 32;
    const std::int64_t num_words = row_bytes / 4;
    for (std::int64_t first = 0; first < num_words; first += kStretch) {
        const std::int64_t end = first + kStretch < num_words ? first + kStretch : num_words;
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

}  // namespace

Matrix::Matrix(Arena& arena, int num_out, int num_in, Dtype dtype, bool halves) : halves(halves) {
    const int padded = dtype == Dtype::bfloat16 ? (num_in + kInputsPadded - 1) / kInputsPadded * kInputsPadded : num_in;
    const std::int64_t panel_bytes = std::int64_t{padded} * kPanel * item_bytes(dtype);
    const std::int64_t num_panels = (num_out + kPanel - 1) / kPanel;
    void* panels = nullptr;
    memory_ = arena.take(panel_bytes * num_panels, &panels);
    view = {panels, panel_bytes, num_out, num_in, padded, dtype};
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
        const std::int64_t row_bytes = std::int64_t{view.num_in} * item_bytes(view.dtype);
        pack_words(static_cast<const char*>(values) + (begin - first_row) * row_bytes, end - begin, row_bytes,
                   begin - part * kPanel, static_cast<std::uint32_t*>(const_cast<void*>(panel(index))));
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

namespace {

std::int64_t bytes_of_block(const KVView& view) {
    const bool is_scaled = view.dtype == Dtype::int8;
    const std::int64_t item = view.dtype == Dtype::float32 ? 4 : view.dtype == Dtype::bfloat16 ? 2 : 1;
    const std::int64_t a_row = view.head_dim * item + (is_scaled ? sizeof(float) : 0);
    return 2 * a_row * view.block_size * view.num_kv_heads;
}

}  // namespace

Cache::Cache(const KVView& like, int layer, int num_layers, std::shared_ptr<Memory> memory)
    : view(like), memory(std::move(memory)), block_bytes_(bytes_of_block(like)) {
    view.block_stride = block_bytes_ * num_layers;
    view.blocks = this->memory->as<char>() + block_bytes_ * layer;
}

std::vector<Cache> Cache::layers(int num_layers, const KVView& like) {
    const auto memory = std::make_shared<Memory>(bytes_of_block(like) * like.num_blocks * num_layers);
    std::vector<Cache> layers;
    for (int layer = 0; layer < num_layers; ++layer) layers.push_back(Cache(like, layer, num_layers, memory));
    return layers;
}

void Cache::copy_block(std::int64_t from, std::int64_t to) {
    char* blocks = static_cast<char*>(view.blocks);
    std::memcpy(blocks + to * view.block_stride, blocks + from * view.block_stride,
                static_cast<std::size_t>(block_bytes_));
}

}  // namespace octavo
