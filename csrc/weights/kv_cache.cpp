// How the blocks of keys and values of a model's layers share one memory.

#include "weights/kv_cache.h"

#include <cstring>
#include <utility>

namespace octavo {

namespace {

int item_bytes(Dtype dtype) { return dtype == Dtype::bfloat16 ? 2 : 4; }

std::int64_t bytes_of_block(const KVView& view) {
    const bool is_scaled = view.dtype == Dtype::int8;
    const std::int64_t item = is_scaled ? 1 : item_bytes(view.dtype);
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
