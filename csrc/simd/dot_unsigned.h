// Integer dot products (dot.h) by an instruction that multiplies unsigned bytes with signed ones, as those of VNNI do.
// Included by the file that has it, as plus_unsigned(sums, codes, x).
//
// Signed weights go in with 128 added, and their sums come out with kBias times the sum of the row's bytes too much.
#pragma once

#include "simd/dot.h"

namespace {

constexpr int kBias = 128;

OCTAVO_INLINE Bytes prepare(vi codes) { return {codes ^ (vi)splat_word(0x80808080u), codes}; }

OCTAVO_INLINE void add_bytes(vi& sums, const Bytes& w, vi x) { sums = plus_unsigned(sums, w.codes, x); }
OCTAVO_INLINE void add_nibbles(vi& sums, vi codes, vi x) { sums = plus_unsigned(sums, codes, x); }
OCTAVO_INLINE vi total_of_nibbles(vi sums) { return sums; }

}  // namespace
