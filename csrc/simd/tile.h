// The one inner loop of products: MR rows times NV vectors of columns, sums in registers, terms added in the order of
// the inner dimension. A sum is one chain of `fma`s from its first term to its last, so it is the same whatever MR, NV
// and the places where a long chain is set down in memory and taken up again.
//
// The instruction set says what a tile holds at most so that its sums stay in registers (kMaxRows rows, and of so many
// rows tile_vectors(rows) vectors of columns), and how a product is added (accumulate).
#pragma once

#include "simd/vec.h"

namespace {

// Up to so many rows a tile takes longer to read than to compute; it then asks for what comes next as it goes.
constexpr int kFetchRows = 3;

// The right-hand side, by how it lies in memory: `steps` of it, `stride` elements apart.
struct Pairs {  // of bfloat16 in words: an even and an odd inner index
    using Element = std::uint32_t;
    static constexpr int kInner = 2;
};
struct Singles {  // float32
    using Element = float;
    static constexpr int kInner = 1;
};
struct Halves {  // bfloat16, side by side
    using Element = std::uint16_t;
    static constexpr int kInner = 1;
};
struct Quarters {  // int8, side by side
    using Element = std::int8_t;
    static constexpr int kInner = 1;
};

// How the left-hand side lies: rows side by side for each inner index, as many as the tile has; or row by row.
struct Packed {
    static constexpr bool kPacked = true;
};
struct Rows {
    static constexpr bool kPacked = false;
};

// Where a tile's operands lie. Row m of `Rows` begins at a + m * a_row.
template <class A, class B>
struct Tile {
    const float* a;
    const typename B::Element* b;
    const typename B::Element* next;  // a right-hand side that will be read soon; it need not exist
    float* c;
    std::int64_t a_row, b_stride, c_row;
    int steps;
    bool continues;  // take up the sums that lie in c; else begin at zero
};

template <int MR, int NV, class A>
OCTAVO_INLINE void add_products(const float* a, std::int64_t a_row, const vf (&values)[NV], vf (&sums)[MR][NV]) {
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
        const vf x = splat(A::kPacked ? a[m] : a[m * a_row]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) accumulate(sums[m][v], x, values[v]);
    }
}

template <int MR, int NV, class A, class B>
inline __attribute__((noinline)) void run_tile(const Tile<A, B>& t) {
    vf sums[MR][NV];
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sums[m][v] = t.continues ? load(t.c + m * t.c_row + v * W) : splat(0.0f);
    constexpr int kInner = A::kPacked ? MR : 1;
    const float* a = t.a;
    const typename B::Element* b = t.b;
    const char* ahead = reinterpret_cast<const char*>(t.next);
    for (int step = 0; step < t.steps; ++step, a += kInner * B::kInner, b += t.b_stride) {
        vf values[NV];
        if constexpr (MR <= kFetchRows) {
            constexpr int kBytes = NV * W * static_cast<int>(sizeof(typename B::Element));
#pragma GCC unroll 4
            for (int line = 0; line < kBytes; line += 64) __builtin_prefetch(ahead + line, 0, 3);
            ahead += t.b_stride * static_cast<std::int64_t>(sizeof(typename B::Element));
        }
        if constexpr (B::kInner == 2) {
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) values[v] = lower(load_as<vu>(b + v * W));
            add_products<MR, NV, A>(a, t.a_row, values, sums);
            // The words are loaded again: kept, they would drive sums out of the registers.
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) values[v] = upper(load_as<vu>(b + v * W));
            add_products<MR, NV, A>(a + kInner, t.a_row, values, sums);
        } else {
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) values[v] = load(b + v * W);
            add_products<MR, NV, A>(a, t.a_row, values, sums);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) store(t.c + m * t.c_row + v * W, sums[m][v]);
}

// A tile of `rows` <= kMaxRows rows (MR counts down to it) and all `vectors` of its columns.
template <class A, class B, int MR = kMaxRows>
OCTAVO_INLINE void run_tiles(int rows, int vectors, Tile<A, B> t) {
    if constexpr (MR == 0) {
        return;
    } else if (rows == MR) {
        constexpr int NV = tile_vectors(MR);
        int v = 0;
        for (; v + NV <= vectors; v += NV, t.b += NV * W, t.next += NV * W, t.c += NV * W) run_tile<MR, NV>(t);
        if constexpr (NV > 2)
            for (; v + 2 <= vectors; v += 2, t.b += 2 * W, t.next += 2 * W, t.c += 2 * W) run_tile<MR, 2>(t);
        for (; v < vectors; ++v, t.b += W, t.next += W, t.c += W) run_tile<MR, 1>(t);
    } else {
        run_tiles<A, B, MR - 1>(rows, vectors, t);
    }
}

}  // namespace
