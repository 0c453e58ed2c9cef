// The AVX-512 kernels, with bfloat16 products by its dot-product instruction: pairs of inputs at a time.
#include "simd/avx512.h"
#include "simd/dot_vnni_avx512.h"
#include "simd/dot_bf16.h"

#include "isa/kernel_table.h"

namespace {

// Blocks of kMaxRows rows, pairs of one input pair side by side: [input pairs, rows of the block].
void pack_rows_pairs(const PackArgs& args, int first_row, int num_rows) {
    auto* packed = static_cast<std::uint32_t*>(args.packed);
    for (int row = first_row; row < first_row + num_rows; ++row) {
        const int first = row - row % kMaxRows, left = args.num_rows - first;
        const int rows = left < kMaxRows ? left : kMaxRows;
        const float* x = args.x + (args.rows != nullptr ? args.rows[row] : row) * args.stride;
        const float scale = args.norm != nullptr ? inverse_rms(x, args.num_in, args.eps) : 1.0f;
        const auto value = [&](int i) {
            if (i >= args.num_in) return std::uint16_t{0};
            return round_to_bf16(args.norm != nullptr ? x[i] * scale * args.norm[i] : x[i]);
        };
        std::uint32_t* to = packed + std::int64_t{first} * args.padded_in / 2 + row % kMaxRows;
        for (int i = 0; i < args.padded_in; i += 2)
            to[i / 2 * rows] = value(i) | std::uint32_t{value(i + 1)} << 16;
    }
}

template <int MR>
inline __attribute__((noinline)) void tile_pairs(const std::uint32_t* a, const std::uint32_t* b, float* c, int steps,
                                                 bool continues) {
    constexpr int NV = kPanel / W;
    vf sums[MR][NV];
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v) sums[m][v] = continues ? load(c + m * kPanel + v * W) : splat(0.0f);
    for (int step = 0; step < steps; ++step, a += MR, b += kPanel) {
        vu words[NV];
        for (int v = 0; v < NV; ++v) words[v] = load_as<vu>(b + v * W);
#pragma GCC unroll 16
        for (int m = 0; m < MR; ++m)
            for (int v = 0; v < NV; ++v) sums[m][v] = dot_pairs(sums[m][v], a[m], words[v]);
    }
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v) store(c + m * kPanel + v * W, sums[m][v]);
}

template <int MR = kMaxRows>
OCTAVO_INLINE void tiles_pairs(int rows, const std::uint32_t* a, const std::uint32_t* b, float* c, int steps,
                               bool continues) {
    if constexpr (MR > 0) {
        if (rows == MR) return tile_pairs<MR>(a, b, c, steps, continues);
        tiles_pairs<MR - 1>(rows, a, b, c, steps, continues);
    }
}

void product_pairs(const ProductArgs& args) {
    constexpr int kPassPairs = 256;
    const auto* panel = static_cast<const std::uint32_t*>(args.panel.data);
    const auto* packed = static_cast<const std::uint32_t*>(args.packed);
    const int pairs = args.padded_in / 2, last_row = args.first_row + args.num_rows;
    for (int first = 0; first < pairs; first += kPassPairs) {
        const int steps = pairs - first < kPassPairs ? pairs - first : kPassPairs;
        for (int row = args.first_row; row < last_row; row += kMaxRows) {
            const int rows = args.total_rows - row < kMaxRows ? args.total_rows - row : kMaxRows;
            tiles_pairs(rows, packed + std::int64_t{row} * pairs + std::int64_t{first} * rows,
                        panel + std::int64_t{first} * kPanel,
                        args.scratch + std::int64_t{row - args.first_row} * kPanel, steps, first > 0);
        }
    }
}

double spin_pairs(std::int64_t rounds) {
    constexpr int kSums = 10;
    vf sums[kSums], w, x;
#pragma GCC unroll 10
    for (int i = 0; i < kSums; ++i) sums[i] = splat(static_cast<float>(i));
    some_numbers(w, x);
    for (std::int64_t round = 0; round < rounds; ++round) {
        forget(w, x);
        const std::uint32_t pair = ((vu)x)[0];
#pragma GCC unroll 10
        for (int i = 0; i < kSums; ++i) sums[i] = dot_pairs(sums[i], pair, (vu)w);
    }
    for (int i = 1; i < kSums; ++i) sums[0] = sums[0] + sums[i];
    volatile float kept = sum(sums[0]);
    (void)kept;
    return 4.0 * kSums * W * static_cast<double>(rounds);
}

constexpr Kernels make_bf16_kernels() {
    Kernels kernels = make_kernels("avx512_bf16");
    kernels.input_bytes[static_cast<int>(Input::bfloat16)] = 2;
    kernels.pack_rows[static_cast<int>(Input::bfloat16)] = pack_rows_pairs;
    kernels.product[static_cast<int>(Format::bfloat16)] = product_pairs;
    kernels.spin_products[static_cast<int>(Format::bfloat16)] = spin_pairs;
    each_format([&](auto format) {
        constexpr Format kFormat = decltype(format)::value;
        if constexpr (is_quantized(kFormat))
            kernels.widen[static_cast<int>(kFormat)] = widen_panel<kFormat, RoundedPairs>;
    });
    return kernels;
}

}  // namespace

namespace octavo {

const Kernels* avx512_bf16_kernels() {
    static constexpr Kernels kernels = make_bf16_kernels();
    return &kernels;
}

}  // namespace octavo
