// One path: the table of all kernels as this file's includer is compiled.
#pragma once

#include "attend.h"
#include "draw.h"
#include "kernels.h"
#include "limits.h"
#include "product.h"
#include "rows.h"

namespace {

constexpr Kernels make_kernels(const char* name) {
    Kernels kernels{};
    kernels.name = name;
    kernels.block_rows[0] = kernels.block_rows[1] = kMaxRows;
    kernels.input_bytes[0] = kernels.input_bytes[1] = 4;
    kernels.pack_rows = pack_rows_float;
    kernels.product[static_cast<int>(Dtype::float32)] = product_fma<Singles>;
    kernels.product[static_cast<int>(Dtype::bfloat16)] = product_fma<Pairs>;
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
