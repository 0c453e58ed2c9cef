// How memory is asked from the system.

#include "core/memory.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace octavo {

namespace {

constexpr std::int64_t kHugePage = std::int64_t{2} << 20;
constexpr std::int64_t kPadding = 256;  // kernels read whole vectors, and may look past the last value

// Tells the address sanitizer, which knows nothing of mapped memory, that only [data, data + num_bytes) of a mapping may
// be touched; with null, that all of it may, for others will have the addresses. Without the sanitizer it does nothing.
void fence([[maybe_unused]] void* mapped, [[maybe_unused]] std::int64_t mapped_size, [[maybe_unused]] void* data,
           [[maybe_unused]] std::int64_t num_bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(mapped, static_cast<std::size_t>(mapped_size));
    if (data == nullptr) return;
    char *begin = static_cast<char*>(mapped), *from = static_cast<char*>(data), *to = from + num_bytes;
    __asan_poison_memory_region(begin, static_cast<std::size_t>(from - begin));
    __asan_poison_memory_region(to, static_cast<std::size_t>(begin + mapped_size - to));
#endif
}

}  // namespace

Memory::Memory(std::int64_t num_bytes) : size_(num_bytes) {
    // Small pieces do not fill a page of 2 MiB, and lie as they come.
    const std::int64_t alignment = num_bytes >= kHugePage ? kHugePage : 64;
    mapped_size_ = num_bytes + 2 * kPadding + alignment;
    mapped_ = mmap(nullptr, static_cast<std::size_t>(mapped_size_), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                   -1, 0);
    if (mapped_ == MAP_FAILED) {
        mapped_ = nullptr;
        throw std::bad_alloc();
    }
    const auto address = reinterpret_cast<std::uintptr_t>(mapped_);
    const auto mask = static_cast<std::uintptr_t>(alignment - 1);
    data_ = reinterpret_cast<void*>((address + mask) & ~mask);
    fence(mapped_, mapped_size_, data_, num_bytes + kPadding);
#if defined(MADV_HUGEPAGE)
    if (num_bytes >= kHugePage) madvise(data_, static_cast<std::size_t>(num_bytes), MADV_HUGEPAGE);  // a wish only
#endif
}

Memory::Memory(Memory&& other) noexcept { *this = std::move(other); }

Memory& Memory::operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(mapped_, other.mapped_);
    std::swap(size_, other.size_);
    std::swap(mapped_size_, other.mapped_size_);
    return *this;
}

Memory::~Memory() {
    if (mapped_ == nullptr) return;
    fence(mapped_, mapped_size_, nullptr, 0);
    munmap(mapped_, static_cast<std::size_t>(mapped_size_));
}

std::shared_ptr<Memory> Arena::take(std::int64_t num_bytes, void** data) {
#if defined(__SANITIZE_ADDRESS__)
    constexpr std::int64_t kLarge = 0;  // each piece by itself, between fences
#else
    constexpr std::int64_t kLarge = std::int64_t{64} << 20;  // pages that nobody touches cost nothing
#endif
    constexpr std::int64_t kLine = 64;
    if (current_ == nullptr || used_ + num_bytes > current_->size()) {
        current_ = std::make_shared<Memory>(num_bytes > kLarge ? num_bytes : kLarge);
        used_ = 0;
    }
    *data = current_->as<char>() + used_;
    used_ += (num_bytes + kLine - 1) / kLine * kLine;
    return current_;
}

void Memory::reserve(std::int64_t num_bytes) {
    if (num_bytes > size_) *this = Memory(num_bytes);
}

}  // namespace octavo
