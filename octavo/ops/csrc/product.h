// Products with a packed matrix, one panel at a time, by fused multiply-add: the body of every path but those with
// matrix instructions for bfloat16.
#pragma once

#include "kernels.h"
#include "rows.h"
#include "tile.h"

namespace {

// Blocks of kMaxRows rows, values of one input side by side: [inputs, rows of the block].
void pack_rows_float(const PackArgs& args, Dtype, int first_row, int num_rows) {
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

// Inputs per pass over the rows: this much of a panel (16 KiB) stays in the first-level cache meanwhile.
template <class B>
constexpr int kPass = sizeof(typename B::Element) == 4 && B::kInner == 1 ? 128 : 256;

template <class B>
void product_fma(const ProductArgs& args) {
    constexpr int kVectors = kPanel / W;
    const auto* panel = static_cast<const typename B::Element*>(args.panel);
    const float* packed = static_cast<const float*>(args.packed);
    const int last_row = args.first_row + args.num_rows;
    for (int first_in = 0; first_in < args.num_in; first_in += kPass<B>) {
        const int left = args.num_in - first_in, inputs = left < kPass<B> ? left : kPass<B>;
        for (int row = args.first_row; row < last_row; row += kMaxRows) {
            const int block = args.total_rows - row < kMaxRows ? args.total_rows - row : kMaxRows;
            Tile<B> tile;
            tile.a = packed + std::int64_t{row} * args.padded_in + std::int64_t{first_in} * block;
            tile.a_row = 1;
            tile.a_inner = block;
            tile.b = panel + std::int64_t{first_in} / B::kInner * kPanel;
            tile.b_stride = kPanel;
            tile.c = args.scratch + std::int64_t{row - args.first_row} * kPanel;
            tile.c_row = kPanel;
            tile.steps = (inputs + B::kInner - 1) / B::kInner;
            tile.continues = first_in > 0;
            run_tiles<B>(block, kVectors, tile);
        }
    }
}

}  // namespace
