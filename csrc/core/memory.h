// Memory for weights, keys and values, and work: zeroed, aligned to 2 MiB, in pages of that size where the system
// gives them (fewer misses of the address cache: a bare read gains about a fifth).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace octavo {

// Move-only owner of a piece of memory. Pages come when they are first touched.
class Memory {
public:
    Memory() = default;
    explicit Memory(std::int64_t num_bytes);  // throws std::bad_alloc
    Memory(Memory&& other) noexcept;
    Memory& operator=(Memory&& other) noexcept;
    ~Memory();

    template <class T>
    T* as() const { return static_cast<T*>(data_); }
    std::int64_t size() const { return size_; }

    // At least `num_bytes`; what was in it is lost if it grows.
    void reserve(std::int64_t num_bytes);

private:
    void* data_ = nullptr;
    void* mapped_ = nullptr;
    std::int64_t size_ = 0, mapped_size_ = 0;
};

// Pieces of memory that live as long as one another, cut from large ones, so that small matrices too lie in large pages.
class Arena {
public:
    // A piece of `num_bytes`, zeroed, aligned to a cache line, and what keeps it alive.
    std::shared_ptr<Memory> take(std::int64_t num_bytes, void** data);

private:
    std::shared_ptr<Memory> current_;
    std::int64_t used_ = 0;
};

}  // namespace octavo
