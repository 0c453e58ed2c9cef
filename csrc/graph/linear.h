// Products of activations with a packed matrix, on all threads.
#pragma once

#include <cstdint>

#include "core/context.h"
#include "weights/packed_matrix.h"

namespace octavo {

struct Norm {
    const float* weight = nullptr;
    float eps = 0.0f;
};

struct LinearInput {
    const float* x;
    const std::int32_t* rows;  // null: all
    std::int64_t stride;
    int num_rows;
    Norm norm;
};

struct LinearOutput {
    float* out;
    std::int64_t stride;
    bool adds, silu;
};

// out (+)= norm(x) times the matrix, transposed, + bias; with `silu`, silu of the first half of the outputs times the
// second.
void run_linear(ExecutionContext& context, const Matrix& matrix, const LinearInput& input, const LinearOutput& output);

}  // namespace octavo
