// A recorded graph: operations over numbered buffers in the order in which they run, and the plans that hold what
// differs from one step to the next. Knows nothing of models.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/context.h"

namespace octavo {

// Some rows of a matrix that are held alike.
struct Part {
    int num_rows;
    Format format;
    QuantKind kind;
};

// Quantized rows, as they come: integer codes [rows, num_in] with group scales. Float16 scales and minimums [rows,
// groups], or [rows, super-blocks] where there are sub-scales [rows, groups]. What a part does not have is null.
struct CodeRows {
    const std::int8_t* codes;
    const std::uint16_t* scales;
    const std::uint16_t* mins;
    const std::int8_t* sub_scales;
    const std::int8_t* sub_mins;
};

// A packed matrix [num_out, num_in] and its memory; see PanelView. Every part begins with a panel of its own. With
// `halves`, the panels of the second half of the outputs stand between those of the first, so that gate and up of the
// same outputs come from memory side by side.
class Matrix {
public:
    struct Panel {
        PanelView view;
        int first_out, num_columns;
    };

    // All parts read their input alike.
    Matrix(Arena& arena, int num_in, const std::vector<Part>& parts, bool halves);

    // Packs rows [first_row, first_row + num_rows): floats [num_rows, num_in] of the rows' format, or quantized rows.
    void fill(Pool& pool, int first_row, int num_rows, const void* values);
    void fill(Pool& pool, int first_row, int num_rows, const CodeRows& rows);
    // Row `row` in float32, bit for bit what its format means.
    void copy_row(int row, float* out) const;
    Format format_of(int row) const { return panel_of(row).view.format; }
    QuantKind kind_of(int row) const { return panel_of(row).view.kind; }
    int num_panels() const { return static_cast<int>(panels.size()); }
    const Panel& panel(int index) const { return panels[static_cast<std::size_t>(index)]; }
    std::int64_t num_bytes() const { return num_bytes_; }

    int num_out = 0, num_in, padded_in = 0;
    Input input;
    const bool halves;
    std::vector<Panel> panels;  // in the order in which they lie in memory
    std::vector<float> bias;

private:
    const Panel& panel_of(int row) const { return panel(panel_of_row_[static_cast<std::size_t>(row)]); }
    template <class F>
    void each_panel(Pool& pool, int first_row, int num_rows, F&& f);

    std::vector<int> panel_of_row_;
    std::int64_t num_bytes_ = 0;
    std::shared_ptr<Memory> memory_;  // holds the panels, and other matrices'
};

// Keys and values of one layer; see KVView. The layers of a model share one memory, in which a block's layers lie side
// by side: a short context then touches few pages, which matters where pages are large.
class Cache {
public:
    static std::vector<Cache> layers(int num_layers, const KVView& like);
    void copy_block(std::int64_t from, std::int64_t to);

    KVView view;
    std::shared_ptr<Memory> memory;  // of all layers

private:
    Cache(const KVView& like, int layer, int num_layers, std::shared_ptr<Memory> memory);
    std::int64_t block_bytes_;
};

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

// Keys whose running softmax is kept apart, from fixed absolute positions on: a long context's segments can then be
// computed by several threads, and joining them in order gives what one thread would.
constexpr int kSegment = 1024;

struct Norm {
    const float* weight = nullptr;
    float eps = 0.0f;
};

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
