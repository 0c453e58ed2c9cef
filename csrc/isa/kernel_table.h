// One ISA variant: the table of all kernels, as the file that includes this one is compiled.
#pragma once

#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/gemm_float.h"
#include "kernels/gemm_int8.h"
#include "kernels/kernels.h"
#include "kernels/roofline.h"
#include "kernels/rope_kv.h"
#include "kernels/sampling.h"
#include "kernels/widen.h"

namespace {

// How rows of floats or of int8 codes are packed, for every Input.
template <int kAt = 0>
constexpr void set_inputs(Kernels& kernels) {
    if constexpr (kAt < kNumInputs) {
        constexpr InputTraits kTraits = kInputs[kAt];
        if constexpr (kTraits.group_len > 0) {
            kernels.block_rows[kAt] = kCodeBlockRows;
            kernels.input_bytes[kAt] = 1;
            kernels.pack_rows[kAt] = pack_rows_int8<kTraits.group_len>;
        } else {
            kernels.block_rows[kAt] = kMaxRows;
            kernels.input_bytes[kAt] = 4;
            kernels.pack_rows[kAt] = pack_rows_float;
        }
        set_inputs<kAt + 1>(kernels);
    }
}

constexpr Kernels make_kernels(const char* name) {
    Kernels kernels{};
    kernels.name = name;
    set_inputs(kernels);
    each_format([&](auto format) {
        constexpr Format kFormat = decltype(format)::value;
        auto& product = kernels.product[static_cast<int>(kFormat)];
        auto& spin_products = kernels.spin_products[static_cast<int>(kFormat)];
        spin_products = spin_fma;
        if constexpr (is_quantized(kFormat)) {
            product = product_codes<kFormat>;
            spin_products = spin_codes<traits_of(kFormat).bits == 4>;
            kernels.widen[static_cast<int>(kFormat)] = widen_panel<kFormat, PlainPairs>;
        } else if constexpr (kFormat == Format::float32) {
            product = product_fma<Singles>;
        } else {
            static_assert(kFormat == Format::bfloat16);
            product = product_fma<Pairs>;
        }
    });
    kernels.store = store_sums;
    kernels.rms_norm = rms_norm;
    kernels.silu_mul = silu_mul;
    kernels.add = add;
    kernels.rope = rope;
    kernels.run_rows = kRunRows;
    kernels.attend = attend;
    kernels.attend_scratch = attend_scratch;
    kernels.state_floats = state_floats;
    kernels.merge = merge;
    kernels.finish = finish;
    kernels.scan = scan;
    kernels.peak = peak;
    kernels.weigh = weigh;
    kernels.mass = mass;
    kernels.count_above = count_above;
    kernels.collect = collect;
    kernels.read = read_bytes;
    return kernels;
}

}  // namespace
