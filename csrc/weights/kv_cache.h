// The blocks of keys and values: their memory, and copies of blocks. Who owns which block is decided in Python.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/memory.h"
#include "kernels/kernels.h"

namespace octavo {

// Keys and values of one layer; see KVView. The layers of a model share one memory, in which a block's layers lie side
// by side: a short context then touches few pages, which matters where pages are large.
class Cache {
public:
    static std::vector<Cache> layers(int num_layers, const KVView& like);
    void copy_block(std::int64_t from, std::int64_t to);

    KVView view;
    std::shared_ptr<Memory> memory;  // of all layers

private:
    Cache(const KVView& like, int layer, int num_layers, std::shared_ptr<Memory> memory);
    std::int64_t block_bytes_;
};

}  // namespace octavo
