// Integer dot products (dot.h) in plain vector operations, byte by byte.
#pragma once

#include "simd/dot.h"

namespace {

constexpr int kBias = 0;

OCTAVO_INLINE Bytes prepare(vi codes) { return {codes, codes}; }

OCTAVO_INLINE vi byte_of(vi words, int i) { return (vi)((vu)words << (24 - 8 * i)) >> 24; }

OCTAVO_INLINE void add_bytes(vi& sums, const Bytes& w, vi x) {
    for (int i = 0; i < 4; ++i) sums += byte_of(w.codes, i) * byte_of(x, i);
}
OCTAVO_INLINE void add_nibbles(vi& sums, vi codes, vi x) { add_bytes(sums, {codes, codes}, x); }
OCTAVO_INLINE vi total_of_nibbles(vi sums) { return sums; }

}  // namespace
