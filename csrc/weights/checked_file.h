// Bytes that come back from a file as they were written, or not at all: one checksum for each chunk of a file.
#pragma once

#include <cstdint>
#include <vector>

#include "core/pool.h"

namespace octavo {

constexpr std::int64_t kChunkBytes = std::int64_t{256} << 10;  // still in the L2 cache when its checksum is taken

// Of `num_bytes` bytes: finds damage, is no defense against a forger. Any change within one word of eight bytes
// changes it.
std::uint64_t checksum(const void* data, std::int64_t num_bytes);

// A piece of memory and where in a file it comes from. Each is cut into chunks of its own, the last may be short.
struct FilePiece {
    char* data;
    std::int64_t num_bytes, offset;
};

std::int64_t num_chunks(const std::vector<FilePiece>& pieces);

// The checksum of every chunk of what is in memory, piece by piece, into `sums` [num_chunks].
void take_checksums(Pool& pool, const std::vector<FilePiece>& pieces, std::uint64_t* sums);

// Reads all pieces on all threads; whether all could be read and have the checksums `sums` [num_chunks].
bool read_checked(Pool& pool, int descriptor, const std::vector<FilePiece>& pieces, const std::uint64_t* sums);

}  // namespace octavo
