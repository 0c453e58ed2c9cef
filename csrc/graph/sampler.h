// Drawing tokens from logits, and scoring tokens under them. What the rules mean is said in octavo/ops/sampling.py, and
// by octavo/ops/reference/sampling.py; the values here are the same, as pointers. Knows nothing of Python.
#pragma once

#include <cstdint>

#include "core/pool.h"
#include "kernels/kernels.h"

namespace octavo {

struct Logits {
    const float* values;  // row i at values + i * stride
    std::int64_t stride;
    int num_rows, vocab;
};

enum class RowStatus : int { ok = 0, not_finite = 1, nothing_allowed = 2 };

// (row, token) pairs in the order of rows; both are within the logits' bounds.
struct Pairs {
    const std::int64_t* rows;
    const std::int64_t* tokens;
    std::int64_t count;
};

struct Rules {
    const float* temperature;  // [num_rows], like all up to `presence`
    const std::int64_t* top_k;
    const float* top_p;
    const float* min_p;
    const double* uniform;
    const float* repetition;
    const float* frequency;
    const float* presence;
    Pairs seen;
    const float* seen_counts;
    Pairs biased;
    const float* bias;
    Pairs banned;
    Pairs allowed;
};

struct Scored {
    std::int64_t* ids;  // [num_rows]
    float* logprobs;
    std::int64_t* ranks;
    std::int64_t* top_ids;  // [num_rows, num_top]
    float* top_logprobs;
    std::int64_t* statuses;
};

// One token a row by `rules`, scored under the logits as they come. num_top <= vocab. Only one thread at a time may
// call these two with the same pool. A result has the same bits whatever the number of threads and the other rows are.
void sample(Pool&, const Kernels&, const Logits&, const Rules&, int num_top, const Scored&);

// The same for tokens that are given, one a row.
void score(Pool&, const Kernels&, const Logits&, const std::int64_t* targets, int num_top, const Scored&);

}  // namespace octavo
