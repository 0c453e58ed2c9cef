// Products of bfloat16 by tile registers: 16 rows, 16 columns and 32 inputs at a time. A tile's product adds its inputs
// in an order of its own (simd/amx_tiles.h), the same for every row, however many rows there are.
#pragma once

#include "kernels/elementwise.h"
#include "kernels/kernels.h"
#include "simd/vec.h"

namespace {

// Tiles of input rows: step s's tile [rows, kTileInputs] at `at` + s * step.
struct TileInputs {
    const std::uint16_t* at;
    std::int64_t step;
};

// Blocks of kTileRows rows (the last may have fewer), each as whole tiles: [padded inputs / kTileInputs, rows of the
// block, kTileInputs] of bfloat16.
OCTAVO_INLINE TileInputs tiles_of(const std::uint16_t* packed, int row, int num_rows, int padded_in) {
    const int left = num_rows - row, rows = left < kTileRows ? left : kTileRows;
    return {packed + std::int64_t{row} * padded_in, std::int64_t{rows} * kTileInputs};
}

// A row of a tile: kTileInputs values from x on.
template <bool kNormed>
OCTAVO_INLINE void pack_inputs(const float* x, float scale, const float* norm, std::uint16_t* to) {
    for (int v = 0; v < kTileInputs; v += 2 * W) {
        vf low = load(x + v), high = load(x + v + W);
        if constexpr (kNormed) low = low * scale * load(norm + v), high = high * scale * load(norm + v + W);
        store_bf16(to + v, low, high);
    }
}

template <bool kNormed>
OCTAVO_INLINE void pack_row_tiles(const PackArgs& args, const float* x, TileInputs tiles, int row) {
    const float scale = kNormed ? inverse_rms(x, args.num_in, args.eps) : 1.0f;
    std::uint16_t* to = const_cast<std::uint16_t*>(tiles.at) + row * kTileInputs;
    int i = 0;
    for (; i + kTileInputs <= args.num_in; i += kTileInputs, to += tiles.step)
        pack_inputs<kNormed>(x + i, scale, args.norm + i, to);
    // All of the padding: what stood there may be infinite, and its weights are only 0.
    for (; i < args.padded_in; i += kTileInputs, to += tiles.step) {
        float left[kTileInputs] = {}, norms[kTileInputs] = {};
        for (int at = 0; at < kTileInputs && i + at < args.num_in; ++at)
            left[at] = x[i + at], norms[at] = kNormed ? args.norm[i + at] : 0.0f;
        pack_inputs<kNormed>(left, scale, norms, to);
    }
}

void pack_rows_tiles(const PackArgs& args, int first_row, int num_rows) {
    const auto* packed = static_cast<const std::uint16_t*>(args.packed);
    for (int row = first_row; row < first_row + num_rows; ++row) {
        const float* x = args.x + (args.rows != nullptr ? args.rows[row] : row) * args.stride;
        const TileInputs tiles = tiles_of(packed, row - row % kTileRows, args.num_rows, args.padded_in);
        if (args.norm != nullptr)
            pack_row_tiles<true>(args, x, tiles, row % kTileRows);
        else
            pack_row_tiles<false>(args, x, tiles, row % kTileRows);
    }
}

static_assert(kTileColumns == kPanel, "two tiles of columns are a panel");

// Stores an earlier product's sums row by row between the `num_steps` steps of another, which wait for other parts of the
// processor.
struct Meanwhile {
    const StoreArgs& args;
    const int rows_per_step;
    int row = 0;

    Meanwhile(const StoreArgs& args, std::int64_t num_steps)
        : args(args), rows_per_step(static_cast<int>((args.num_rows + num_steps - 1) / num_steps)) {}

    OCTAVO_INLINE void step() {
        for (int i = 0; i < rows_per_step && row < args.num_rows; ++i) store_row(args, row++);
    }
};

// Where a tile's sums go; what is asked for meanwhile, at each step `lines` lines from `ahead` on, and those of the rows'
// places in the output, which lie far apart and in no cache; and what is stored meanwhile.
struct TileOutputs {
    float* sums;
    std::int64_t stride;
    float* out;  // or null
    std::int64_t out_stride;
    const char* ahead;
    int lines;
    Meanwhile* meanwhile;
};

// A tile of rows (kTwo: two) times two tiles of columns, `steps` times kTileInputs inputs deep, while what `to` says is
// asked for and, with kStores, stored.
template <bool kTwo, bool kStores>
struct TileProduct {
    const char *a, *below, *b;  // of the next step
    const std::int64_t a_step, below_step;  // bytes
    const char* ahead;
    const int lines;
    Meanwhile& meanwhile;

    // kAsks: for the lines of a row of each tile as well, `stride` bytes further at each step.
    template <bool kAsks>
    OCTAVO_INLINE void multiply(int steps, const char* row, const char* lower, std::int64_t stride) {
        constexpr int kStepBytes = kTileInputs * kTileColumns * 2;
        for (const char* end = b + std::int64_t{steps} * kStepBytes; b != end; b += kStepBytes) {
            tile_load<6>(b, kTileColumns * 4);
            tile_load<7>(b + 64, kTileColumns * 4);
            tile_load<4>(a, kTileInputs * 2);
            tile_products_bf16<0, 4, 6>();
            tile_products_bf16<1, 4, 7>();
            if constexpr (kTwo) {
                tile_load<5>(below, kTileInputs * 2);
                tile_products_bf16<2, 5, 6>();
                tile_products_bf16<3, 5, 7>();
                below += below_step;
            }
            // A first tile of two is full.
            a += kTwo ? kTileRows * kTileInputs * 2 : a_step;
            for (int line = 0; line < lines; ++line, ahead += 64) __builtin_prefetch(ahead, 0, 2);
            if constexpr (kAsks) {
                __builtin_prefetch(row, 1, 3), __builtin_prefetch(row + 64, 1, 3);
                __builtin_prefetch(lower, 1, 3), __builtin_prefetch(lower + 64, 1, 3);
                row += stride, lower += stride;
            }
            if constexpr (kStores) meanwhile.step();
        }
    }
};

template <bool kTwo, bool kStores>
OCTAVO_INLINE void multiply(TileInputs a, TileInputs below, const std::uint32_t* b, int steps, TileOutputs to) {
    tile_zero<0>(), tile_zero<1>();
    if (kTwo) tile_zero<2>(), tile_zero<3>();
    TileProduct<kTwo, kStores> product{reinterpret_cast<const char*>(a.at), reinterpret_cast<const char*>(below.at),
                                       reinterpret_cast<const char*>(b), a.step * 2, below.step * 2, to.ahead, to.lines,
                                       *to.meanwhile};
    int done = 0;
    if (kTwo && to.out != nullptr) {
        done = steps < kTileRows ? steps : kTileRows;
        const auto* row = reinterpret_cast<const char*>(to.out);
        product.template multiply<true>(done, row, row + kTileRows * to.out_stride * 4, to.out_stride * 4);
    }
    product.template multiply<false>(steps - done, nullptr, nullptr, 0);
    const std::int64_t bytes = to.stride * 4;
    tile_store<0>(to.sums, bytes);
    tile_store<1>(to.sums + 16, bytes);
    if (kTwo) {
        tile_store<2>(to.sums + kTileRows * to.stride, bytes);
        tile_store<3>(to.sums + kTileRows * to.stride + 16, bytes);
    }
}

template <bool kStores>
OCTAVO_INLINE void multiply_rows(const ProductArgs& args) {
    const auto* panel = static_cast<const std::uint32_t*>(args.panel.data);
    const auto* packed = static_cast<const std::uint16_t*>(args.packed);
    const int steps = args.padded_in / kTileInputs, all_steps = steps * ((args.num_rows + 31) / 32);
    const int lines = static_cast<int>((args.ahead_bytes / 64 + all_steps - 1) / all_steps);
    Meanwhile meanwhile(args.meanwhile, all_steps);
    TileOutputs to{args.scratch, args.stride, args.out, args.out_stride, args.ahead, lines, &meanwhile};
    int rows_before = -1, more_before = -1;
    for (int row = 0; row < args.num_rows; row += 2 * kTileRows) {
        const int left = args.num_rows - row, rows = left < kTileRows ? left : kTileRows;
        const int more = left - rows < kTileRows ? left - rows : kTileRows;
        if (rows != rows_before || more != more_before) configure(rows, more, 64);
        rows_before = rows, more_before = more;
        const TileInputs a = tiles_of(packed, args.first_row + row, args.total_rows, args.padded_in);
        const TileInputs below = tiles_of(packed, args.first_row + row + kTileRows, args.total_rows, args.padded_in);
        if (more > 0)
            multiply<true, kStores>(a, below, panel, steps, to);
        else
            multiply<false, kStores>(a, below, panel, steps, to);
        to.sums += 2 * kTileRows * to.stride;
        if (to.out != nullptr) to.out += 2 * kTileRows * to.out_stride;
        to.ahead += std::int64_t{64} * lines * steps;
    }
    release();
}

inline __attribute__((noinline)) void multiply_and_store(const ProductArgs& args) { multiply_rows<true>(args); }

void product_tiles(const ProductArgs& args) {
    if (args.meanwhile.num_rows > 0) return multiply_and_store(args);
    multiply_rows<false>(args);
}

}  // namespace
