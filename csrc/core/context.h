// What all operations of one device share: the threads, the kernels of the chosen ISA variant, and scratch memory.
#pragma once

#include <string>
#include <vector>

#include "core/memory.h"
#include "core/operation_times.h"
#include "core/pool.h"
#include "kernels/kernels.h"

namespace octavo {

struct ExecutionContext {
    // `isa`: one of isa_names() (core/isa_variants.h), or empty for the best. Throws std::invalid_argument.
    ExecutionContext(const std::string& isa, int num_threads, bool widens);

    Pool pool;
    const Kernels* kernels;
    const bool widens;  // products with quantized weights take them as bfloat16; see Matrix
    Arena weights;
    Memory packed;  // the input of a product
    std::vector<Memory> scratch;  // one a thread
    OperationTimes times;

    float* scratch_of(int thread) const { return scratch[static_cast<std::size_t>(thread)].as<float>(); }
    void reserve_scratch(std::int64_t num_floats);
};

}  // namespace octavo
