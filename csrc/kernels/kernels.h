// What one instruction set offers: a table of small kernels, each for one unit of work on one thread, and the plain
// values that they read. The files that are compiled once for each instruction set include no more than this and
// format_traits.h, so only plain data stands here, and no inline function.
//
// All activations are float32, row-major. Every reduction has one order, whatever the number of rows beside it.
#pragma once

#include <cstdint>

#include "kernels/format_traits.h"

namespace octavo {

enum class Dtype : int { float32 = 0, bfloat16 = 1, int8 = 2 };  // int8: of keys and values only

// Rows of activations as a product reads them.
//
// In blocks of `Kernels::block_rows` rows, the last as short as it is. Of groups a block is int8 codes [groups, rows,
// group], then the numbers of the rows' GroupHeaders, [groups, numbers of a header, rows]; rows of one group lie side
// by side because a product takes them together. `row_bytes` is what a row takes in all.
struct PackArgs {
    const float* x;  // row i at x + rows[i] * stride, or x + i * stride where rows is null
    const std::int32_t* rows;
    const float* norm;  // RMS norm's weights, or null
    void* packed;
    std::int64_t stride, row_bytes;
    int num_rows, num_in, padded_in;
    float eps;
};

// x = code * scale; `sums` are those of the codes of the group's halves, `shift` is their sum times scale.
struct GroupHeader {
    float scale, shift;
    std::int32_t sum, sums[2];
};

// What becomes of the sums of `num_columns` outputs: out[row] = sums + bias (+ out[row]), or, with `up`,
// silu(sums) * up. Row r of the scratch goes to out + r * stride.
struct StoreArgs {
    const float* sums;
    const float* up;  // the sums of the panel that `sums`, as gates, are multiplied with; or null
    const float* bias;
    const float* up_bias;
    float* out;
    std::int64_t stride;
    int num_rows, num_columns;
    bool adds;
};

// One panel times rows [first_row, first_row + num_rows), first_row a multiple of block_rows: raw sums into
// scratch [num_rows, kPanel], or, by a product that stores straight, to rows `stride` apart.
struct ProductArgs {
    PanelView panel;
    const void* packed;
    float* scratch;
    std::int64_t row_bytes;
    int total_rows;  // of the packed input
    int first_row, num_rows, num_in, padded_in;
    std::int64_t stride = kPanel;
    const char* ahead = nullptr;  // weights that may be asked for meanwhile; they need not exist
    std::int64_t ahead_bytes = 0;
    float* out = nullptr;  // where the rows end up at last, `out_stride` apart: lines to ask for, or null
    std::int64_t out_stride = 0;
    StoreArgs meanwhile{};  // sums of an earlier product, none of them in `scratch`; stored when this one returns
};

// Keys and values of one layer; blocks of neighboring numbers are `block_stride` bytes apart. A block holds, for each
// KV head, the keys of its slots, side by side, as [head_dim / 2, block_size, 2] (bfloat16: a pair of dimensions of one
// key together) or [head_dim, block_size] (float32, int8), then the values as [block_size, head_dim]. Behind int8 stand
// float32 scales: those of the keys [block_size], then those of the values [block_size]; a number is its scale times
// its code. (head_dim is even, so the scales are aligned.)
struct KVView {
    void* blocks;
    std::int64_t block_stride;
    int num_blocks, block_size, num_kv_heads, head_dim;
    Dtype dtype;
};

struct RopeArgs {
    float* qkv;  // this token's row: queries are turned in place
    const float* cos;  // [head_dim / 2]
    const float* sin;
    const float* query_norm;  // [head_dim], or null
    const float* key_norm;
    float eps;
    int num_heads;
    std::int64_t slot;
    std::int64_t next_slot;  // of the token that comes next
};

// A run of queries of one row, for one KV head, over keys [first_key, end_key) of the row.
struct AttendArgs {
    const float* q;  // query t's heads at q + t * q_stride; those of this KV head come first
    const std::int32_t* blocks;  // the row's block table
    float* scratch;  // Kernels::attend_scratch floats
    // Running softmax, kept between segments: for each query (token-major, then head of the group) its maximum, to base
    // 2, its sum, and head_dim accumulated values.
    float* state;
    std::int64_t q_stride;
    int kv_head, group;
    int first_position, num_queries;  // the queries' positions
    int first_key, end_key;
    int window;  // 0: none
    float scale, soft_cap;  // soft_cap 0: none
};

struct Kernels {
    const char* name;
    int block_rows[kNumInputs];  // rows that a product takes at a time
    int input_bytes[kNumInputs];  // of one packed value; of a bfloat16 one 2, or 4 where it stays float32
    int run_rows;  // queries times heads of a group that one call of `attend` should have at most

    void (*pack_rows[kNumInputs])(const PackArgs&, int first_row, int num_rows);
    void (*product[kNumFormats])(const ProductArgs&);
    bool stores_straight[kNumFormats];  // whether that product heeds ProductArgs::stride
    bool stores_meanwhile[kNumInputs];  // whether all products with such an input heed ProductArgs::meanwhile
    // A quantized panel (null for other formats) as one of bfloat16, into words [padded_in / 2, kPanel].
    void (*widen[kNumFormats])(const PanelView&, int padded_in, std::uint32_t* to);
    void (*store)(const StoreArgs&);
    void (*rms_norm)(const float* x, const float* norm, float eps, int n, float* out);
    void (*silu_mul)(const float* gate, const float* up, int n, float* out);
    void (*add)(float* x, const float* y, std::int64_t n);
    void (*rope)(const KVView&, const RopeArgs&);
    void (*attend)(const KVView&, const AttendArgs&);
    std::int64_t (*attend_scratch)(int count, int head_dim, int block_size);  // floats; count: queries times group
    std::int64_t (*state_floats)(int count, int head_dim);
    void (*merge)(float* state, const float* later, int num_states, int head_dim);
    void (*finish)(const float* state, int num_queries, int group, int head_dim, float* out, std::int64_t stride);

    // Sampling; see kernels/sampling.h.
    void (*scan)(const float* x, int n, struct ScanResult*);
    float (*peak)(const float* x, int n, int* at);
    void (*weigh)(const float* x, int n, float largest, float temperature, float* weights);
    double (*mass)(const float* weights, int n, float floor);
    int (*count_above)(const float* x, int n, float value);
    int (*collect)(const float* x, int n, float low, float high, std::int32_t* places);

    // The machine's limits: a sum over bytes that does nothing but read, and `rounds` rounds of a format's products that
    // never leave the registers (returns how many additions and multiplications they were).
    std::uint32_t (*read)(const void* from, std::int64_t num_bytes);
    double (*spin_products[kNumFormats])(std::int64_t rounds);
};

struct ScanResult {
    float largest;  // NaN if there is one among the values
    int largest_at;  // the first of equal ones
    double sum;  // of e^(x - largest); meaningless where `largest` is not finite
};

}  // namespace octavo
