// Recording operations and running them, one after the other, each on all threads.

#include "graph/program.h"

#include <algorithm>

#include "core/util.h"

namespace octavo {

namespace {

constexpr int kRowsPerUnit = 16;  // rows of the small operations that a thread takes at a time

// f(row) for every row, some rows a unit.
template <class F>
void each_row(Pool& pool, int num_rows, F&& f) {
    pool.each(ceil_div(num_rows, kRowsPerUnit), [&](int unit, int) {
        const int end = std::min(num_rows, (unit + 1) * kRowsPerUnit);
        for (int row = unit * kRowsPerUnit; row < end; ++row) f(row);
    });
}

}  // namespace

void Program::embed(const Matrix& matrix, const TokensPlan& tokens, int out) {
    Op op{Kind::embed};
    op.matrix = &matrix;
    op.tokens = &tokens;
    op.out = out;
    ops_.push_back(op);
}

void Program::rms_norm(Norm norm, int width, int in, int out) {
    Op op{Kind::rms_norm, in, out, width};
    op.norm = norm;
    ops_.push_back(op);
}

void Program::linear(const Matrix& matrix, Norm norm, int in, int out, bool adds, bool silu) {
    Op op{Kind::linear, in, out, silu ? matrix.num_out / 2 : matrix.num_out, adds, silu};
    op.matrix = &matrix;
    op.norm = norm;
    ops_.push_back(op);
}

void Program::rope(Cache& cache, const AttentionPlan& plan, const RopePlan& rope, Norm query, Norm key, int qkv) {
    Op op{Kind::rope};
    op.in = op.out = qkv;
    op.cache = &cache;
    op.attention = &plan;
    op.rope = &rope;
    op.norm = query;
    op.key_norm = key;
    ops_.push_back(op);
}

void Program::attention(const Cache& cache, const AttentionPlan& plan, int q, std::int64_t q_stride, int out) {
    Op op{Kind::attention, q, out};
    op.cache = const_cast<Cache*>(&cache);
    op.attention = &plan;
    op.stride = q_stride;
    ops_.push_back(op);
}

void Program::silu_mul(int width, int in, int out) { ops_.push_back({Kind::silu_mul, in, out, width}); }

void Program::add(int width, int in, int out) { ops_.push_back({Kind::add, in, out, width}); }

int Program::add_buffer(int width) {
    widths_.push_back(width);
    buffers_.emplace_back();
    return static_cast<int>(widths_.size()) - 1;
}

void Program::reserve(int num_tokens) {
    for (std::size_t i = 0; i < widths_.size(); ++i) buffers_[i].reserve(std::int64_t{num_tokens} * widths_[i] * 4);
}

const char* Program::name_of(Kind kind) {
    switch (kind) {
        case Kind::embed: return "embed";
        case Kind::rms_norm: return "rms_norm";
        case Kind::linear: return "linear";
        case Kind::rope: return "rope";
        case Kind::attention: return "attention";
        case Kind::silu_mul: return "silu_mul";
        case Kind::add: return "add";
    }
    return "";
}

void Program::run(int num_tokens) {
    reserve(num_tokens);
    for (const Op& op : ops_) {
        const Matrix* matrix = op.matrix;
        context_.times.timed(name_of(op.kind), matrix == nullptr ? 0 : matrix->num_out,
                             matrix == nullptr ? 0 : matrix->num_in, [&] { run_op(op, num_tokens); });
    }
}

void Program::run_op(const Op& op, int num_tokens) {
    const Kernels& kernels = *context_.kernels;
    Pool& pool = context_.pool;
    const std::int64_t width = op.width;
    const float* in = op.in >= 0 ? buffer(op.in) : nullptr;
    float* out = buffer(op.out);
    switch (op.kind) {
        case Kind::embed:
            return each_row(pool, num_tokens, [&](int row) {
                const std::int64_t hidden = op.matrix->num_in;
                op.matrix->copy_row(op.tokens->ids[static_cast<std::size_t>(row)], out + row * hidden);
            });
        case Kind::rms_norm:
            return each_row(pool, num_tokens, [&](int row) {
                kernels.rms_norm(in + row * width, op.norm.weight, op.norm.eps, op.width, out + row * width);
            });
        case Kind::linear:
            return run_linear(context_, *op.matrix, {in, nullptr, op.matrix->num_in, num_tokens, op.norm},
                              {out, width, op.adds, op.silu});
        case Kind::rope:
            return run_rope(op, num_tokens, out);
        case Kind::attention:
            return run_attention(op, in, out);
        case Kind::silu_mul:
            return each_row(pool, num_tokens, [&](int row) {
                const float* x = in + row * 2 * width;
                kernels.silu_mul(x, x + width, op.width, out + row * width);
            });
        case Kind::add:
            return each_row(pool, num_tokens,
                            [&](int row) { kernels.add(out + row * width, in + row * width, width); });
    }
}

void Program::run_rope(const Op& op, int num_tokens, float* qkv) {
    const AttentionShape& shape = op.attention->shape;
    const std::int64_t width = std::int64_t{shape.num_heads + 2 * shape.num_kv_heads} * shape.head_dim;
    const std::int64_t half = shape.head_dim / 2;
    each_row(context_.pool, num_tokens, [&](int row) {
        const auto next = static_cast<std::size_t>(row + 1 < num_tokens ? row + 1 : row);
        context_.kernels->rope(op.cache->view,
                               {qkv + row * width, op.rope->cos.data() + row * half, op.rope->sin.data() + row * half,
                                op.norm.weight, op.key_norm.weight, op.norm.eps, shape.num_heads,
                                op.attention->slots[static_cast<std::size_t>(row)], op.attention->slots[next]});
    });
}

void Program::run_attention(const Op& op, const float* q, float* out) {
    const AttentionPlan& plan = *op.attention;
    const AttentionShape& shape = plan.shape;
    const Kernels& kernels = *context_.kernels;
    const int group = shape.num_heads / shape.num_kv_heads;
    int most = 0;
    for (const AttentionPlan::Unit& unit : plan.units) most = std::max(most, unit.num_queries * group);
    states_.reserve(plan.num_state_floats * 4);
    context_.reserve_scratch(2 * kernels.state_floats(most, shape.head_dim) +
                             kernels.attend_scratch(most, shape.head_dim, op.cache->view.block_size));
    context_.pool.each(static_cast<int>(plan.units.size()), [&](int index, int thread) {
        attend_unit(op, plan.units[static_cast<std::size_t>(index)], q, out, context_.scratch_of(thread));
    });
    const std::int64_t stride = std::int64_t{shape.num_heads} * shape.head_dim;
    context_.pool.each(static_cast<int>(plan.joins.size()), [&](int index, int) {
        const AttentionPlan::Join& join = plan.joins[static_cast<std::size_t>(index)];
        float* state = states_.as<float>() + join.state;
        for (int i = 1; i < join.num_states; ++i)
            kernels.merge(state, state + i * join.state_size, join.num_queries * group, shape.head_dim);
        kernels.finish(state, join.num_queries, group, shape.head_dim,
                       out + join.first_token * stride + std::int64_t{join.kv_head} * group * shape.head_dim, stride);
    });
}

void Program::attend_unit(const Op& op, const AttentionPlan::Unit& unit, const float* q, float* out, float* scratch) {
    const AttentionPlan& plan = *op.attention;
    const AttentionShape& shape = plan.shape;
    const Kernels& kernels = *context_.kernels;
    const int group = shape.num_heads / shape.num_kv_heads;
    const std::int64_t size = kernels.state_floats(unit.num_queries * group, shape.head_dim);
    float* state = unit.state >= 0 ? states_.as<float>() + unit.state : scratch;
    AttendArgs args{};
    args.q = q + unit.first_token * op.stride;
    args.q_stride = op.stride;
    args.blocks = plan.block_table.data() + std::int64_t{unit.row} * plan.table_width;
    args.scratch = scratch + 2 * size;
    args.kv_head = unit.kv_head;
    args.group = group;
    args.first_position = unit.first_position;
    args.num_queries = unit.num_queries;
    args.window = shape.window;
    args.scale = shape.scale;
    args.soft_cap = shape.soft_cap;
    for (int segment = unit.first_segment; segment < unit.end_segment; ++segment) {
        args.state = segment == unit.first_segment ? state : scratch + size;
        args.first_key = segment * kSegmentKeys;
        args.end_key = (segment + 1) * kSegmentKeys;
        kernels.attend(op.cache->view, args);
        if (segment != unit.first_segment)
            kernels.merge(state, scratch + size, unit.num_queries * group, shape.head_dim);
    }
    if (unit.state >= 0) return;
    const std::int64_t stride = std::int64_t{shape.num_heads} * shape.head_dim;
    kernels.finish(state, unit.num_queries, group, shape.head_dim,
                   out + unit.first_token * stride + std::int64_t{unit.kv_head} * group * shape.head_dim, stride);
}

}  // namespace octavo
