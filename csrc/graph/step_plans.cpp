// What is worked out once a step: angles, and how attention is cut into units of work.

#include "graph/step_plans.h"

#include <algorithm>
#include <cmath>

namespace octavo {

namespace {

constexpr int kApart = 4;  // up to so many queries of a row have their segments computed apart

}  // namespace

void RopePlan::set(const std::int32_t* positions, int count) {
    const std::size_t half = frequencies.size();
    cos.resize(half * static_cast<std::size_t>(count));
    sin.resize(cos.size());
    for (int t = 0; t < count; ++t)
        for (std::size_t i = 0; i < half; ++i) {
            const float angle = static_cast<float>(positions[t]) * frequencies[i];
            cos[static_cast<std::size_t>(t) * half + i] = std::cos(angle) * scale;
            sin[static_cast<std::size_t>(t) * half + i] = std::sin(angle) * scale;
        }
}

void AttentionPlan::set(const Kernels& kernels, const AttentionShape& new_shape, int num_rows,
                        const std::int32_t* row_starts, const std::int32_t* context_lens) {
    shape = new_shape;
    units.clear();
    joins.clear();
    num_state_floats = 0;
    for (int row = 0; row < num_rows; ++row)
        add_row(kernels, row, row_starts[row], row_starts[row + 1] - row_starts[row], context_lens[row]);
    // The longest first, so that no thread begins one when the others have nothing left to do.
    const auto cost = [](const Unit& u) {
        const std::int64_t num_keys = std::int64_t{u.end_segment - u.first_segment} * kSegmentKeys;
        return num_keys * u.num_queries + u.first_position % kSegmentKeys;
    };
    std::stable_sort(units.begin(), units.end(), [&](const Unit& a, const Unit& b) { return cost(a) > cost(b); });
}

void AttentionPlan::add_row(const Kernels& kernels, int row, int first_token, int num_queries, int context_len) {
    const int group = shape.num_heads / shape.num_kv_heads;
    const int run = std::max(1, kernels.run_rows / group);
    for (int done = 0; done < num_queries; done += run) {
        const int count = std::min(run, num_queries - done), first = context_len - num_queries + done;
        const int seen = shape.window > 0 ? std::max(0, first - shape.window + 1) : 0;
        const int begin = seen / kSegmentKeys, end = (first + count - 1) / kSegmentKeys + 1;
        const bool apart = end - begin > 1 && num_queries <= kApart;
        if (!apart) {
            for (int head = 0; head < shape.num_kv_heads; ++head)
                units.push_back({row, first_token + done, count, first, head, begin, end, -1});
            continue;
        }
        const std::int64_t size = kernels.state_floats(count * group, shape.head_dim), base = num_state_floats;
        const std::int64_t states_of_head = (end - begin) * size;
        for (int head = 0; head < shape.num_kv_heads; ++head)
            joins.push_back({first_token + done, count, head, end - begin, base + head * states_of_head, size});
        // The heads of a segment one after the other: they lie side by side in its blocks.
        for (int segment = begin; segment < end; ++segment)
            for (int head = 0; head < shape.num_kv_heads; ++head) {
                const std::int64_t state = base + head * states_of_head + (segment - begin) * size;
                units.push_back({row, first_token + done, count, first, head, segment, segment + 1, state});
            }
        num_state_floats += shape.num_kv_heads * states_of_head;
    }
}

}  // namespace octavo
