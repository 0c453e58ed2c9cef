// What differs from one step to the next, worked out once a step: token ids, rotations, and who attends to what. A
// recorded graph refers to these plans.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"

namespace octavo {

// Keys whose running softmax is kept apart, from fixed absolute positions on: a long context's segments can then be
// computed by several threads, and joining them in order gives what one thread would.
constexpr int kSegmentKeys = 1024;

struct TokensPlan {
    std::vector<std::int32_t> ids;
};

struct RopePlan {
    std::vector<float> frequencies;  // [head_dim / 2]
    float scale = 1.0f;
    std::vector<float> cos, sin;  // [T, head_dim / 2]
    void set(const std::int32_t* positions, int count);
};

struct AttentionShape {
    int num_heads, num_kv_heads, head_dim;
    float scale;
    int window;  // 0: none
    float soft_cap;  // 0: none
};

// Who reads what in one step of one KV group.
class AttentionPlan {
public:
    // A run of queries of one row for one KV head, over some segments of its keys.
    struct Unit {
        int row, first_token, num_queries, first_position, kv_head, first_segment, end_segment;
        std::int64_t state;  // where its state goes, in floats; -1: it writes its output itself
    };
    // A run whose segments were computed apart.
    struct Join {
        int first_token, num_queries, kv_head, num_states;
        std::int64_t state, state_size;
    };

    void set(const Kernels& kernels, const AttentionShape& shape, int num_rows, const std::int32_t* row_starts,
             const std::int32_t* context_lens);

    AttentionShape shape{};
    std::vector<std::int64_t> slots;
    std::vector<std::int32_t> block_table;  // [R, table_width]
    int table_width = 0;
    std::vector<Unit> units;
    std::vector<Join> joins;
    std::int64_t num_state_floats = 0;

private:
    void add_row(const Kernels& kernels, int row, int first_token, int num_queries, int context_len);
};

}  // namespace octavo
