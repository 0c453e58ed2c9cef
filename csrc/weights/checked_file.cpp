// A chunk is read, then summed while it is in the cache of the core that read it.

#include "weights/checked_file.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

namespace octavo {

namespace {

constexpr int kLanes = 8;  // as many multiplications as are under way at once
constexpr std::uint64_t kOdd = 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio

// For a fixed `hash` another word gives another result, and the other way round: nothing that differed is lost.
std::uint64_t mixed(std::uint64_t hash, std::uint64_t word) {
    hash = (hash ^ word) * kOdd;
    return hash ^ hash >> 32;
}

std::vector<FilePiece> chunks_of(const std::vector<FilePiece>& pieces) {
    std::vector<FilePiece> chunks;
    for (const FilePiece& piece : pieces)
        for (std::int64_t at = 0; at < piece.num_bytes; at += kChunkBytes)
            chunks.push_back({piece.data + at, std::min(kChunkBytes, piece.num_bytes - at), piece.offset + at});
    return chunks;
}

bool read_all(int descriptor, const FilePiece& chunk) {
    for (std::int64_t done = 0; done < chunk.num_bytes;) {
        const auto left = static_cast<std::size_t>(chunk.num_bytes - done);
        const ssize_t moved = pread(descriptor, chunk.data + done, left, static_cast<off_t>(chunk.offset + done));
        if (moved < 0 && errno == EINTR) continue;
        if (moved <= 0) return false;  // an error, or the file ends here
        done += moved;
    }
    return true;
}

}  // namespace

std::uint64_t checksum(const void* data, std::int64_t num_bytes) {
    const char* bytes = static_cast<const char*>(data);
    std::uint64_t lanes[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = static_cast<std::uint64_t>(lane);
    constexpr std::int64_t kRow = kLanes * 8;
    std::int64_t at = 0;
    for (; at + kRow <= num_bytes; at += kRow) {
        std::uint64_t words[kLanes];
        std::memcpy(words, bytes + at, sizeof words);
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = mixed(lanes[lane], words[lane]);
    }
    std::uint64_t rest[kLanes] = {};
    if (at < num_bytes) std::memcpy(rest, bytes + at, static_cast<std::size_t>(num_bytes - at));
    std::uint64_t sum = static_cast<std::uint64_t>(num_bytes);
    for (int lane = 0; lane < kLanes; ++lane) sum = mixed(sum, mixed(lanes[lane], rest[lane]));
    return sum;
}

std::int64_t num_chunks(const std::vector<FilePiece>& pieces) {
    std::int64_t count = 0;
    for (const FilePiece& piece : pieces) count += (piece.num_bytes + kChunkBytes - 1) / kChunkBytes;
    return count;
}

void take_checksums(Pool& pool, const std::vector<FilePiece>& pieces, std::uint64_t* sums) {
    const std::vector<FilePiece> chunks = chunks_of(pieces);
    pool.each(static_cast<int>(chunks.size()), [&](int unit, int) {
        const FilePiece& chunk = chunks[static_cast<std::size_t>(unit)];
        sums[unit] = checksum(chunk.data, chunk.num_bytes);
    });
}

bool read_checked(Pool& pool, int descriptor, const std::vector<FilePiece>& pieces, const std::uint64_t* sums) {
    const std::vector<FilePiece> chunks = chunks_of(pieces);
    std::atomic<bool> is_whole{true};
    pool.each(static_cast<int>(chunks.size()), [&](int unit, int) {
        const FilePiece& chunk = chunks[static_cast<std::size_t>(unit)];
        if (!is_whole.load(std::memory_order_relaxed)) return;  // what is read now is thrown away
        if (!read_all(descriptor, chunk) || checksum(chunk.data, chunk.num_bytes) != sums[unit]) is_whole = false;
    });
    return is_whole;
}

}  // namespace octavo
