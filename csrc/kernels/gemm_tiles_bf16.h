// Products of bfloat16 by tile registers: 16 rows, 16 columns and 32 inputs at a time. A tile's product adds its inputs
// in an order of its own (simd/amx_tiles.h), the same for every row, however many rows there are.
#pragma once

#include "kernels/elementwise.h"
#include "kernels/kernels.h"
#include "simd/vec.h"

namespace {

static_assert(kTileColumns == kPanel, "two tiles of columns are a panel");

// Rows of bfloat16, each padded to whole tiles of inputs.
void pack_rows_tiles(const PackArgs& args, int first_row, int num_rows) {
    auto* packed = static_cast<std::uint16_t*>(args.packed);
    for (int row = first_row; row < first_row + num_rows; ++row) {
        const float* x = args.x + (args.rows != nullptr ? args.rows[row] : row) * args.stride;
        const float scale = args.norm != nullptr ? inverse_rms(x, args.num_in, args.eps) : 1.0f;
        std::uint16_t* to = packed + std::int64_t{row} * args.padded_in;
        for (int i = 0; i < args.num_in; ++i)
            to[i] = round_to_bf16(args.norm != nullptr ? x[i] * scale * args.norm[i] : x[i]);
        for (int i = args.num_in; i < args.padded_in; ++i) to[i] = 0;
    }
}

void product_tiles(const ProductArgs& args) {
    const auto* panel = static_cast<const std::uint32_t*>(args.panel.data);
    const auto* packed = static_cast<const std::uint16_t*>(args.packed);
    const int steps = args.padded_in / kTileInputs;
    int rows_before = -1, more_before = -1;
    for (int row = 0; row < args.num_rows; row += 2 * kTileRows) {
        const int left = args.num_rows - row, rows = left < kTileRows ? left : kTileRows;
        const int more = left - rows < kTileRows ? left - rows : kTileRows;
        if (rows != rows_before || more != more_before) configure(rows, more, 64);
        rows_before = rows, more_before = more;
        const std::uint16_t* a = packed + std::int64_t{args.first_row + row} * args.padded_in;
        float* c = args.scratch + std::int64_t{row} * kPanel;
        if (more > 0)
            multiply<true>(a, args.padded_in, panel, steps, c);
        else
            multiply<false>(a, args.padded_in, panel, steps, c);
    }
    release();
}

}  // namespace
