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

namespace {

constexpr Kernels make_kernels(const char* name) {
    Kernels kernels{};
    kernels.name = name;
    for (int& rows : kernels.block_rows) rows = kMaxRows;
    kernels.bf16_bytes = 4;
    kernels.pack_rows[static_cast<int>(Input::float32)] = pack_rows_float;
    kernels.pack_rows[static_cast<int>(Input::bfloat16)] = pack_rows_float;
    kernels.pack_rows[static_cast<int>(Input::groups_of_32)] = pack_rows_int8<32>;
    kernels.pack_rows[static_cast<int>(Input::groups_of_64)] = pack_rows_int8<64>;
    kernels.product[static_cast<int>(Format::float32)] = product_fma<Singles>;
    kernels.product[static_cast<int>(Format::bfloat16)] = product_fma<Pairs>;
    kernels.product[static_cast<int>(Format::int4_32)] = product_codes<4, 32>;
    kernels.product[static_cast<int>(Format::int8_16)] = product_codes<8, 16>;
    kernels.product[static_cast<int>(Format::int8_32)] = product_codes<8, 32>;
    kernels.product[static_cast<int>(Format::int8_64)] = product_codes<8, 64>;
    kernels.store = store_sums;
    kernels.rms_norm = rms_norm;
    kernels.silu_mul = silu_mul;
    kernels.add = add;
    kernels.rope = rope;
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
    kernels.spin_products = spin_fma;
    return kernels;
}

}  // namespace
