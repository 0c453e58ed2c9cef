// The AVX-512 kernels, with products by the tile registers of AMX.
#include "simd/avx512.h"
#include "simd/dot_vnni_avx512.h"
#include "simd/dot_bf16.h"
#include "simd/amx_tiles.h"
#include "simd/attention_avx512.h"

#include "isa/kernel_table.h"
#include "kernels/attention_tiles.h"
#include "kernels/gemm_tiles_bf16.h"
#include "kernels/gemm_tiles_int8.h"

namespace {

constexpr Kernels make_amx_kernels() {
    Kernels kernels = make_kernels("amx");
    kernels.block_rows[static_cast<int>(Input::bfloat16)] = 2 * kTileRows;
    kernels.input_bytes[static_cast<int>(Input::bfloat16)] = 2;
    kernels.pack_rows[static_cast<int>(Input::bfloat16)] = pack_rows_tiles;
    kernels.product[static_cast<int>(Format::bfloat16)] = product_tiles;
    kernels.spin_products[static_cast<int>(Format::bfloat16)] = spin_tiles<false>;
    kernels.stores_straight[static_cast<int>(Format::bfloat16)] = true;
    kernels.stores_meanwhile[static_cast<int>(Input::bfloat16)] = true;
    each_format([&](auto format) {
        constexpr Format kFormat = decltype(format)::value;
        if constexpr (is_quantized(kFormat)) {
            kernels.product[static_cast<int>(kFormat)] = product_codes_tiles<kFormat>;
            kernels.spin_products[static_cast<int>(kFormat)] = spin_tiles<true>;
            kernels.stores_straight[static_cast<int>(kFormat)] = true;
            kernels.widen[static_cast<int>(kFormat)] = widen_panel<kFormat, RoundedPairs>;
        }
    });
    kernels.run_rows = kTileRunRows;
    kernels.attend = attend_tiles;
    kernels.attend_scratch = attend_tiles_scratch;
    return kernels;
}

}  // namespace

namespace octavo {

const Kernels* amx_kernels() {
    static constexpr Kernels kernels = make_amx_kernels();
    return &kernels;
}

}  // namespace octavo
