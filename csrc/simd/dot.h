// Integer dot products: in every 32-bit lane, four bytes of a matrix times four of a row, added to the lane's sum.
//
// All of them are exact, whatever the instructions, so every ISA variant has the same sums. Bytes of a row lie in
// -127..127. Each instruction set has, in a dot_*.h of its own:
//
// - prepare(codes): signed weights, made ready for many rows;
// - add_bytes(sums, weights, x), of weights so prepared;
// - add_nibbles(sums, codes, x), of codes 0..15 as they are: the sums of up to 8 calls, which mean nothing before
//   total_of_nibbles(sums);
// - kBias, by which every weight of `add_bytes` counts too much: the kernel takes kBias times the sum of the row's bytes
//   off the sums.
//
// A tile of such sums has kCodeRows rows at most.
#pragma once

#include "simd/vec.h"

namespace {

// A row's next four bytes in every lane.
OCTAVO_INLINE vi splat_bytes(const std::int8_t* from) {
    std::int32_t word;
    std::memcpy(&word, from, sizeof word);
    return splat_int(word);
}

// The weights' four bytes of each lane, made ready for many rows.
struct Bytes {
    vi codes, magnitudes;
};

}  // namespace
