// Where the time of a step's native part goes: seconds by operation, summed up while somebody asks for them.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

namespace octavo {

// An operation by its name and, of a product, its matrix's size.
struct OperationTime {
    const char* name;
    int num_out, num_in;
    std::int64_t count;
    double seconds;
};

class OperationTimes {
public:
    // Begins anew, or ends.
    void keep(bool is_on) {
        rows_.clear();
        is_on_ = is_on;
    }

    // Calls f.
    template <class F>
    void timed(const char* name, int num_out, int num_in, F&& f) {
        if (!is_on_) return f();
        const auto begin = std::chrono::steady_clock::now();
        f();
        OperationTime& row = row_of(name, num_out, num_in);
        ++row.count;
        row.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }

    // In the order in which they came first.
    const std::vector<OperationTime>& rows() const { return rows_; }

private:
    OperationTime& row_of(const char* name, int num_out, int num_in) {
        for (OperationTime& row : rows_)
            if (row.name == name && row.num_out == num_out && row.num_in == num_in) return row;
        rows_.push_back({name, num_out, num_in, 0, 0.0});
        return rows_.back();
    }

    bool is_on_ = false;
    std::vector<OperationTime> rows_;
};

}  // namespace octavo
