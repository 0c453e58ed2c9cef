// Products with a packed matrix, one panel at a time, by fused multiply-add: in every ISA variant but those with
// matrix instructions for bfloat16.
#pragma once

#include "kernels/elementwise.h"
#include "kernels/kernels.h"
#include "simd/tile.h"

namespace {

// Blocks of kMaxRows rows, values of one input side by side: [inputs, rows of the block].
void pack_rows_float(const PackArgs& args, int first_row, int num_rows) {
    float* packed = static_cast<float*>(args.packed);
    for (int first = first_row; first < first_row + num_rows; first += kMaxRows) {
        const int left = args.num_rows - first, rows = left < kMaxRows ? left : kMaxRows;
        float* block = packed + std::int64_t{first} * args.padded_in;
        if (rows == 1) {
            normed_row(args, first, block);
            continue;
        }
        for (int m = 0; m < rows; ++m) {
            const float* x = args.x + (args.rows != nullptr ? args.rows[first + m] : first + m) * args.stride;
            const float scale = args.norm != nullptr ? inverse_rms(x, args.num_in, args.eps) : 1.0f;
            float* to = block + m;
            if (args.norm != nullptr)
                for (int i = 0; i < args.num_in; ++i) to[i * rows] = x[i] * scale * args.norm[i];
            else
                for (int i = 0; i < args.num_in; ++i) to[i * rows] = x[i];
            for (int i = args.num_in; i < args.padded_in; ++i) to[i * rows] = 0.0f;
        }
    }
}

constexpr int kPass = 128;  // inputs a pass over the rows: so much of a panel stays in the first-level cache
constexpr int kAhead = 1024;  // bytes of weights that are asked for before they are needed
constexpr int kWiden = 4 * kMaxRows;  // from so many rows on it pays to widen a pass of bfloat16 weights first

template <class B>
OCTAVO_INLINE void run_pass(const ProductArgs& args, const typename B::Element* weights, int first_in, int inputs) {
    for (int row = args.first_row; row < args.first_row + args.num_rows; row += kMaxRows) {
        const int rows = args.total_rows - row < kMaxRows ? args.total_rows - row : kMaxRows;
        Tile<Packed, B> tile;
        tile.a = static_cast<const float*>(args.packed) + std::int64_t{row} * args.padded_in;
        tile.a += std::int64_t{first_in} * rows;
        tile.a_row = 0;
        tile.b = weights;
        tile.next = weights + kAhead / sizeof(typename B::Element);
        tile.b_stride = kPanel;
        tile.c = args.scratch + std::int64_t{row - args.first_row} * kPanel;
        tile.c_row = kPanel;
        tile.steps = (inputs + B::kInner - 1) / B::kInner;
        tile.continues = first_in > 0;
        run_tiles(rows, kPanel / W, tile);
    }
}

template <class B>
void product_fma(const ProductArgs& args) {
    const auto* panel = static_cast<const typename B::Element*>(args.panel.data);
    for (int first = 0; first < args.num_in; first += kPass) {
        const int left = args.num_in - first, inputs = left < kPass ? left : kPass;
        const auto* weights = panel + std::int64_t{first} / B::kInner * kPanel;
        if constexpr (B::kInner == 2) {
            if (args.num_rows >= kWiden) {
                alignas(64) float wide[kPass * kPanel];
                for (int i = 0; i < inputs; i += 2)
                    for (int v = 0; v < kPanel; v += W) {
                        const vu words = load_as<vu>(weights + i / 2 * kPanel + v);
                        store(wide + i * kPanel + v, lower(words));
                        store(wide + (i + 1) * kPanel + v, upper(words));
                    }
                run_pass<Singles>(args, wide, first, inputs);
                continue;
            }
        }
        run_pass<B>(args, weights, first, inputs);
    }
}

}  // namespace
