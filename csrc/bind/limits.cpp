// What Python sees of the machine's own limits: a bare read of memory, products that never leave the registers.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/context.h"
#include "core/memory.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace octavo;

namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Memory that is read on and on, from its end back to its beginning, by all threads, each in pieces of its own.
class ReadProbe {
public:
    ReadProbe(ExecutionContext& context, std::int64_t num_bytes)
        : context_(context), memory_(num_bytes), num_pieces_(static_cast<int>(num_bytes / kPiece)) {
        if (num_pieces_ < 1) throw std::invalid_argument("too little memory to read");
        context.pool.each(num_pieces_, [&](int unit, int) { std::memset(piece(unit), unit, kPiece); });
    }

    // Bytes a second of reading the next `num_bytes`.
    double sample(std::int64_t num_bytes) {
        const int count = static_cast<int>(std::clamp<std::int64_t>(num_bytes / kPiece, 1, num_pieces_));
        const auto begin = std::chrono::steady_clock::now();
        context_.pool.each(count, [&](int unit, int) {
            volatile std::uint32_t kept = context_.kernels->read(piece((next_ + unit) % num_pieces_), kPiece);
            (void)kept;
        });
        const double seconds = seconds_since(begin);
        next_ = (next_ + count) % num_pieces_;
        return static_cast<double>(count) * static_cast<double>(kPiece) / seconds;
    }

private:
    static constexpr std::size_t kPiece = std::size_t{1} << 18;
    char* piece(int index) { return memory_.as<char>() + static_cast<std::size_t>(index) * kPiece; }

    ExecutionContext& context_;
    Memory memory_;
    int num_pieces_, next_ = 0;
};

double read_bandwidth(ExecutionContext& context, std::int64_t num_bytes, int rounds) {
    ReadProbe probe(context, num_bytes);
    double best = 0.0;
    for (int round = 0; round < rounds; ++round) best = std::max(best, probe.sample(num_bytes));
    return best;
}

// Additions and multiplications a second of a format's products, by all threads, in one sample of `seconds` to twice
// as much.
double product_peak(ExecutionContext& context, const std::string& format, double seconds) {
    const auto* row = std::find_if(std::begin(kFormats), std::end(kFormats),
                                   [&](const FormatTraits& traits) { return format == traits.name; });
    if (row == std::end(kFormats)) throw std::invalid_argument("there is no format " + format);
    const auto spin = context.kernels->spin_products[static_cast<int>(row->format)];
    const int units = 4 * context.pool.num_threads();
    std::vector<double> done(static_cast<std::size_t>(units));
    for (std::int64_t rounds = 256;; rounds *= 2) {
        const auto begin = std::chrono::steady_clock::now();
        context.pool.each(units, [&](int unit, int) { done[static_cast<std::size_t>(unit)] = spin(rounds); });
        const double took = seconds_since(begin);
        double total = 0.0;
        for (const double one : done) total += one;
        if (took >= seconds) return total / took;
    }
}

}  // namespace

void bind_limits(nb::module_& m) {
    using Unlocked = nb::call_guard<nb::gil_scoped_release>;
    nb::class_<ReadProbe>(m, "ReadProbe", "Memory whose bare read is measured. The context must outlive it.")
        .def(nb::init<ExecutionContext&, std::int64_t>(), "context"_a, "num_bytes"_a, nb::keep_alive<1, 2>())
        .def("sample", &ReadProbe::sample, Unlocked(), "num_bytes"_a,
             "Bytes a second of reading the next so many, once.");
    m.def("read_bandwidth", &read_bandwidth, Unlocked(), "context"_a, "num_bytes"_a, "rounds"_a,
          "Bytes a second of a bare read, the best of some rounds.");
    m.def("product_peak", &product_peak, Unlocked(), "context"_a, "format"_a, "seconds"_a,
          "Additions and multiplications a second of a format's products from registers alone, in one sample.");
}
