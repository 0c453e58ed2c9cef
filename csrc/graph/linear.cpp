// A product in two parallel parts: the input's rows are packed (and normed), then panels of weights stream past them.

#include "graph/linear.h"

#include <algorithm>

#include "core/util.h"

namespace octavo {

namespace {

constexpr int kRowsAtOnce = 96;  // rows that a product takes at a time; a multiple of every ISA variant's block_rows
constexpr std::int64_t kStreamBytes = 384 << 10;  // weights that a thread reads in one go, where there are few rows
constexpr int kUnitsPerThread = 3;
constexpr std::int64_t kPassBytes = 1 << 20;  // of packed rows that panels stream past: they stay in the cache
constexpr int kFewRows = 32;  // up to so many a panel is computed no slower than it is read
constexpr int kBytesAhead = 4096;  // then its own bytes are asked for so early; else those of the panels after it
constexpr int kFirstBytes = 1024;  // of a unit's weights, asked for before anything else; later ones are so in time

// What a thread takes at a time: `panels_per_unit` panels (with `silu` pairs of them) and one of `row_parts` parts of
// the rows. Has no influence on any result.
struct WorkSplit {
    int panels_per_unit, num_panel_units, rows_per_part, row_parts;
};

WorkSplit split_work(const ExecutionContext& context, const Matrix& matrix, int num_rows, std::int64_t row_bytes,
                     int step) {
    const int num_panels = matrix.num_panels() / step, threads = context.pool.num_threads();
    const int wanted = threads == 1 ? 1 : threads * kUnitsPerThread;
    const int by_bytes = static_cast<int>(kStreamBytes * num_panels / matrix.num_bytes()) + 1;
    WorkSplit c{};
    // As many as fit, but so that all threads come to an end together.
    const auto longest = [&](int panels) { return ceil_div(ceil_div(num_panels, panels), threads) * panels; };
    c.panels_per_unit = 1;
    for (int panels = 2; panels <= std::min(by_bytes, num_panels / wanted); ++panels)
        if (longest(panels) <= longest(c.panels_per_unit)) c.panels_per_unit = panels;
    c.num_panel_units = ceil_div(num_panels, c.panels_per_unit);
    const int blocks = ceil_div(num_rows, kRowsAtOnce);
    const int parts = c.num_panel_units >= wanted ? 1 : std::min(blocks, ceil_div(wanted, c.num_panel_units));
    const int most = static_cast<int>(std::max<std::int64_t>(1, kPassBytes / (row_bytes * kRowsAtOnce)));
    c.rows_per_part = std::min(ceil_div(blocks, parts), ceil_div(blocks, ceil_div(blocks, most))) * kRowsAtOnce;
    c.row_parts = ceil_div(num_rows, c.rows_per_part);
    return c;
}

std::int64_t packed_row_bytes(const Kernels& kernels, const Matrix& matrix) {
    const std::int64_t inputs = matrix.padded_in, group = traits_of(matrix.input).group_len;
    const std::int64_t headers = group > 0 ? inputs / group * std::int64_t{sizeof(GroupHeader)} : 0;
    return inputs * kernels.input_bytes[static_cast<int>(matrix.input)] + headers;
}

void pack_input(ExecutionContext& context, const Matrix& matrix, const LinearInput& input, std::int64_t row_bytes) {
    const Kernels& kernels = *context.kernels;
    const int kind = static_cast<int>(matrix.input), block = kernels.block_rows[kind];
    context.packed.reserve(std::int64_t{ceil_div(input.num_rows, block)} * block * row_bytes);
    const PackArgs args{input.x, input.rows, input.norm.weight, context.packed.as<void>(), input.stride, row_bytes,
                        input.num_rows, matrix.num_in, matrix.padded_in, input.norm.eps};
    context.pool.each(ceil_div(input.num_rows, block), [&](int unit, int) {
        const int first = unit * block;
        kernels.pack_rows[kind](args, first, std::min(block, input.num_rows - first));
    });
}

// Of the rows to store part number `part` of `parts`.
StoreArgs part_of(const StoreArgs& store, int part, int parts) {
    const int first = store.num_rows * part / parts, end = store.num_rows * (part + 1) / parts;
    StoreArgs some = store;
    some.sums += first * kPanel;
    if (some.up != nullptr) some.up += first * kPanel;
    some.out += first * store.stride;
    some.num_rows = end - first;
    return some;
}

bool is_widened(const Matrix& matrix, const PanelView& view) {
    return is_quantized(view.format) && matrix.input == Input::bfloat16;
}

// The panel as a product takes it: where the matrix's input is bfloat16 a quantized one widened, into `words`.
PanelView ready_panel(const Kernels& kernels, const Matrix& matrix, int index, std::uint32_t* words) {
    const PanelView& view = matrix.panel(index).view;
    if (!is_widened(matrix, view)) return view;
    kernels.widen[static_cast<int>(view.format)](view, matrix.padded_in, words);
    return {words, std::int64_t{matrix.padded_in} * kPanel * 2, Format::bfloat16, {}};
}

}  // namespace

void run_linear(ExecutionContext& context, const Matrix& matrix, const LinearInput& input, const LinearOutput& output) {
    if (input.num_rows == 0) return;
    const Kernels& kernels = *context.kernels;
    const std::int64_t row_bytes = packed_row_bytes(kernels, matrix);
    pack_input(context, matrix, input, row_bytes);
    const int step = output.silu ? 2 : 1;
    // A thread holds sums of kRowsAtOnce rows, gate and up; twice, where those of the rows before are stored meanwhile.
    const std::int64_t num_sums = 4 * kRowsAtOnce * kPanel;
    const bool stores_meanwhile = kernels.stores_meanwhile[static_cast<int>(matrix.input)];
    const std::int64_t num_words = context.widens ? std::int64_t{matrix.padded_in} / 2 * kPanel : 0;
    context.reserve_scratch(num_sums + step * num_words);
    const WorkSplit c = split_work(context, matrix, input.num_rows, row_bytes, step);
    const float* bias = matrix.bias.empty() ? nullptr : matrix.bias.data();
    const std::int64_t panel_bytes = matrix.num_bytes() / matrix.num_panels();
    // A thread goes along the panels with one part of the rows, then with the next.
    context.pool.each(c.num_panel_units * c.row_parts, [&](int unit, int thread) {
        float* const all_sums = context.scratch_of(thread);
        const int first_panel = unit % c.num_panel_units * c.panels_per_unit, part = unit / c.num_panel_units;
        const int end_panel = std::min(first_panel + c.panels_per_unit, matrix.num_panels() / step);
        const int first_row = part * c.rows_per_part, end_row = std::min(first_row + c.rows_per_part, input.num_rows);
        const char* first = static_cast<const char*>(matrix.panel(first_panel * step).view.data);
        for (int line = 0; line < kFirstBytes; line += 64) __builtin_prefetch(first + line, 0, 3);
        StoreArgs pending{};  // what the next product stores meanwhile
        int half = 0;  // of the sums' memory, for the next product; in the other one is what is pending
        for (int index = first_panel; index < end_panel; ++index) {
            const Matrix::Panel& panel = matrix.panel(index * step);
            PanelView views[2];
            for (int i = 0; i < step; ++i) {
                auto* words = reinterpret_cast<std::uint32_t*>(all_sums + num_sums + i * num_words);
                views[i] = ready_panel(kernels, matrix, index * step + i, words);
            }
            const bool is_plain = bias == nullptr && !output.silu && !output.adds && panel.num_columns == kPanel &&
                                  kernels.stores_straight[static_cast<int>(views[0].format)];
            for (int row = first_row; row < end_row; row += kRowsAtOnce) {
                const int rows = std::min(kRowsAtOnce, end_row - row);
                float* out = output.out + row * output.stride + panel.first_out;
                float* sums = all_sums + half * 2 * kRowsAtOnce * kPanel;
                for (int i = 0; i < step; ++i) {
                    const PanelView& view = views[i];
                    ProductArgs args{view, context.packed.as<void>(), sums + i * kRowsAtOnce * kPanel, row_bytes,
                                     input.num_rows, row, rows, matrix.num_in, matrix.padded_in};
                    if (is_plain) args.scratch = out, args.stride = output.stride;
                    const PanelView& own = matrix.panel(index * step + i).view;
                    const char* data = static_cast<const char*>(own.data);
                    // Parts of the next panel, as many as this one is gone over with rows. (Of quantized ones few rows
                    // ask for what they need themselves.)
                    const std::int64_t done = panel_bytes * (row - first_row) / (end_row - first_row);
                    const bool is_bound = end_row - first_row <= kFewRows && !is_quantized(own.format);
                    args.ahead = data + (is_bound ? kBytesAhead : step * panel_bytes + done);
                    args.ahead_bytes = panel_bytes * rows / (end_row - first_row);
                    if (i == step - 1) args.out = out, args.out_stride = output.stride;
                    args.meanwhile = part_of(pending, i, step);
                    kernels.product[static_cast<int>(view.format)](args);
                }
                pending.num_rows = 0;
                if (is_plain) continue;
                StoreArgs store{};
                store.sums = sums;
                store.up = output.silu ? sums + kRowsAtOnce * kPanel : nullptr;
                store.bias = bias == nullptr ? nullptr : bias + panel.first_out;
                store.up_bias = bias == nullptr || !output.silu ? nullptr : store.bias + matrix.num_out / 2;
                store.out = out;
                store.stride = output.stride;
                store.num_rows = rows;
                store.num_columns = panel.num_columns;
                store.adds = output.adds;
                if (stores_meanwhile)
                    pending = store, half ^= 1;
                else
                    kernels.store(store);
            }
        }
        if (pending.num_rows > 0) kernels.store(pending);
    });
}

}  // namespace octavo
