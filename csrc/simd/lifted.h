// Functions of registers, on vectors that are one register or two.
#pragma once

#include "simd/vec.h"

namespace {

// f(a, b, c) on whole vectors, in halves where a register holds but half of one.
template <class Register, class F>
OCTAVO_INLINE vi lifted(vi a, vi b, vi c, F f) {
    if constexpr (sizeof(vi) == sizeof(Register)) {
        return (vi)f((Register)a, (Register)b, (Register)c);
    } else {
        Register x[2], y[2], z[2];
        std::memcpy(x, &a, sizeof a), std::memcpy(y, &b, sizeof b), std::memcpy(z, &c, sizeof c);
        x[0] = f(x[0], y[0], z[0]), x[1] = f(x[1], y[1], z[1]);
        std::memcpy(&a, x, sizeof a);
        return a;
    }
}

}  // namespace
