// A recorded graph: operations over numbered buffers in the order in which they run. What differs from one step to the
// next is in the plans that they refer to. Knows nothing of models.
#pragma once

#include <cstdint>
#include <vector>

#include "core/context.h"
#include "core/memory.h"
#include "graph/linear.h"
#include "graph/step_plans.h"
#include "weights/kv_cache.h"
#include "weights/packed_matrix.h"

namespace octavo {

class Program {
public:
    explicit Program(ExecutionContext& context) : context_(context) {}

    void embed(const Matrix& matrix, const TokensPlan& tokens, int out);
    void rms_norm(Norm norm, int width, int in, int out);
    void linear(const Matrix& matrix, Norm norm, int in, int out, bool adds, bool silu);
    void rope(Cache& cache, const AttentionPlan& plan, const RopePlan& rope, Norm query, Norm key, int qkv);
    void attention(const Cache& cache, const AttentionPlan& plan, int q, std::int64_t q_stride, int out);
    void silu_mul(int width, int in, int out);
    void add(int width, int in, int out);

    // A buffer of `width` floats a token; its number.
    int add_buffer(int width);

    // Room for `num_tokens` in every buffer. What is in them is kept only where there was room.
    void reserve(int num_tokens);
    float* buffer(int index) const { return buffers_[static_cast<std::size_t>(index)].as<float>(); }
    int width(int index) const { return widths_[static_cast<std::size_t>(index)]; }

    // Runs all operations over `num_tokens` rows.
    void run(int num_tokens);

private:
    enum class Kind { embed, rms_norm, linear, rope, attention, silu_mul, add };
    struct Op {
        Kind kind;
        int in = -1, out = -1, width = 0;
        bool adds = false, silu = false;
        Norm norm{}, key_norm{};
        std::int64_t stride = 0;
        const Matrix* matrix = nullptr;
        const TokensPlan* tokens = nullptr;
        const RopePlan* rope = nullptr;
        const AttentionPlan* attention = nullptr;
        Cache* cache = nullptr;
    };

    static const char* name_of(Kind kind);
    void run_op(const Op& op, int num_tokens);
    void run_rope(const Op& op, int num_tokens, float* qkv);
    void run_attention(const Op& op, const float* q, float* out);
    void attend_unit(const Op& op, const AttentionPlan::Unit& unit, const float* q, float* out, float* scratch);

    ExecutionContext& context_;
    std::vector<Op> ops_;
    std::vector<int> widths_;
    std::vector<Memory> buffers_;
    Memory states_;
};

}  // namespace octavo
