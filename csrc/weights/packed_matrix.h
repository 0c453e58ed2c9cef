// A matrix as the kernels read it: packed into panels, in one piece of memory.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/memory.h"
#include "core/pool.h"
#include "kernels/kernels.h"

namespace octavo {

// Some rows of a matrix that are held alike.
struct Part {
    int num_rows;
    Format format;
    QuantKind kind;
};

// Quantized rows, as they come: integer codes [rows, num_in] with group scales. Float16 scales and minimums [rows,
// groups], or [rows, super-blocks] where there are sub-scales [rows, groups]. What a part does not have is null.
struct QuantizedRows {
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

    // All parts read their input alike. With `widens` quantized ones stand for their values rounded to bfloat16, and a
    // product takes its input as bfloat16.
    Matrix(Arena& arena, int num_in, const std::vector<Part>& parts, bool halves, bool widens);

    // Packs rows [first_row, first_row + num_rows): floats [num_rows, num_in] of the rows' format, or quantized rows.
    void fill(Pool& pool, int first_row, int num_rows, const void* values);
    void fill(Pool& pool, int first_row, int num_rows, const QuantizedRows& rows);
    // Row `row` in float32, bit for bit what its format means, and what it stands for.
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

}  // namespace octavo
