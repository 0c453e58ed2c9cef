// What Python sees: the execution context, packed weights, the KV cache, plans and programs. Checks what crosses, does
// no work.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "core/context.h"
#include "core/isa_variants.h"
#include "graph/linear.h"
#include "graph/program.h"
#include "graph/step_plans.h"
#include "weights/kv_cache.h"
#include "weights/packed_matrix.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace octavo;

void bind_limits(nb::module_& m);
void bind_sample(nb::module_& m);
void bind_checked_file(nb::module_& m);

namespace {

template <class T, int Dims>
using Array = nb::ndarray<const T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;
using AnyMatrix = nb::ndarray<nb::ndim<2>, nb::ro, nb::c_contig, nb::device::cpu>;
using FloatView = nb::ndarray<nb::numpy, float>;
using ByteView = nb::ndarray<nb::numpy, std::uint8_t>;
using Unlocked = nb::gil_scoped_release;

struct Vector {
    std::vector<float> values;
};

Norm norm_of(const Vector* vector, float eps) { return {vector == nullptr ? nullptr : vector->values.data(), eps}; }

void check(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

Dtype kv_dtype_of(const std::string& name) {
    if (name == "bfloat16") return Dtype::bfloat16;
    if (name == "int8") return Dtype::int8;
    check(name == "float32", "keys and values are float32, bfloat16 or int8");
    return Dtype::float32;
}

void check_rows(const Matrix& matrix, int first_row, std::size_t rows, std::size_t row_len) {
    check(static_cast<int>(row_len) == matrix.num_in, "the rows are not as long as the matrix's");
    const int count = static_cast<int>(rows);
    check(first_row >= 0 && count > 0 && first_row + count <= matrix.num_out, "the matrix has no such rows");
}

void fill(Matrix& matrix, ExecutionContext& context, int first_row, const AnyMatrix& values) {
    check_rows(matrix, first_row, values.shape(0), values.shape(1));
    const FormatTraits& format = traits_of(matrix.format_of(first_row));
    check(format.group_len == 0 && static_cast<int>(values.itemsize()) * 8 == format.bits,
          "the values are not of the matrix's dtype");
    const int rows = static_cast<int>(values.shape(0));
    const void* data = values.data();
    const Unlocked unlocked;
    matrix.fill(context.pool, first_row, rows, data);
}

using Bytes = std::optional<Array<std::int8_t, 2>>;
using Halves = std::optional<Array<std::uint16_t, 2>>;

// Quantized rows: integer codes [rows, num_in] with their scales; the rows must be of one part.
void fill_codes(Matrix& matrix, ExecutionContext& context, int first_row, const Array<std::int8_t, 2>& codes,
                const Array<std::uint16_t, 2>& scales, const Halves& mins, const Bytes& sub_scales,
                const Bytes& sub_mins) {
    check_rows(matrix, first_row, codes.shape(0), codes.shape(1));
    const Format format = matrix.format_of(first_row);
    const QuantKind kind = matrix.kind_of(first_row);
    check(is_quantized(format), "the matrix is not a quantized one");
    check(kind.has_mins == mins.has_value() && kind.has_sub_scales == sub_scales.has_value() &&
          (kind.has_mins && kind.has_sub_scales) == sub_mins.has_value(), "the scales are not of the matrix's kind");
    const std::size_t rows = codes.shape(0);
    const std::size_t groups = static_cast<std::size_t>(matrix.padded_in / traits_of(format).group_len);
    const std::size_t scaled = kind.has_sub_scales ? static_cast<std::size_t>(matrix.padded_in / kSuperBlockInputs)
                                                   : groups;  // what has a float16 scale of its own
    const auto fits = [rows](const auto& array, std::size_t width) {
        return array.shape(0) == rows && array.shape(1) == width;
    };
    check(fits(scales, scaled) && (!mins || fits(*mins, scaled)) && (!sub_scales || fits(*sub_scales, groups)) &&
          (!sub_mins || fits(*sub_mins, groups)), "the scales do not fit the codes");
    const QuantizedRows given{codes.data(), scales.data(), mins ? mins->data() : nullptr,
                              sub_scales ? sub_scales->data() : nullptr, sub_mins ? sub_mins->data() : nullptr};
    const Unlocked unlocked;
    matrix.fill(context.pool, first_row, static_cast<int>(rows), given);
}

Format format_of(const std::string& name) {
    for (const FormatTraits& format : kFormats)
        if (name == format.name) return format.format;
    throw std::invalid_argument("there is no format " + name);
}

// The rows of kFormats, as octavo.ops.formats.WeightFormat.
nb::list formats() {
    nb::list rows;
    for (const FormatTraits& format : kFormats) {
        const InputTraits& input = traits_of(format.input);
        rows.append(nb::make_tuple(format.name, format.bits, format.group_len, input.group_len, input.padding));
    }
    return rows;
}

using PartRow = std::tuple<int, std::string, bool, bool>;  // rows, format, has minimums, has sub-scales

void make_matrix(Matrix* self, ExecutionContext& context, int num_in, const std::vector<PartRow>& rows, bool halves) {
    std::vector<Part> parts;
    int num_out = 0;
    for (const auto& [num_rows, name, has_mins, has_sub_scales] : rows) {
        const Format format = format_of(name);
        parts.push_back({num_rows, format, {has_mins, has_sub_scales}});
        check(num_rows > 0, "an empty part");
        check(!has_mins || traits_of(format).may_have_mins, "a format without minimums");
        check(!has_sub_scales || may_have_sub_scales(format), "a format without sub-scales");
        check(!has_sub_scales || num_in % kSuperBlockInputs == 0, "sub-scales need whole super-blocks of inputs");
        check(traits_of(format).input == traits_of(parts[0].format).input, "the parts do not read their input alike");
        num_out += num_rows;
    }
    check(num_in > 0 && num_out > 0, "an empty matrix");
    check(!halves || num_out % (2 * kPanel) == 0, "halves must be whole panels");
    check(!halves || parts.size() == 1 || (parts.size() == 2 && parts[0].num_rows == parts[1].num_rows),
          "halves must be of one part, or one each");
    new (self) Matrix(context.weights, num_in, parts, halves, context.widens);
}

void set_attention(AttentionPlan& plan, const ExecutionContext& context, const AttentionShape& shape,
                   const Array<std::int64_t, 1>& slots, const Array<std::int32_t, 1>& row_starts,
                   const Array<std::int32_t, 1>& context_lens, const Array<std::int32_t, 2>& block_table) {
    const std::size_t num_rows = context_lens.shape(0);
    check(row_starts.shape(0) == num_rows + 1 && block_table.shape(0) == num_rows, "rows differ in number");
    plan.slots.assign(slots.data(), slots.data() + slots.size());
    plan.block_table.assign(block_table.data(), block_table.data() + block_table.size());
    plan.table_width = static_cast<int>(block_table.shape(1));
    plan.set(*context.kernels, shape, static_cast<int>(num_rows), row_starts.data(), context_lens.data());
}

// Logits of some rows of a program's buffer, into `out` [rows, vocab].
void read_out(ExecutionContext& context, const Program& program, int buffer, const Array<std::int32_t, 1>& rows,
              const Vector* norm, float eps, const Matrix& head, nb::ndarray<float, nb::ndim<2>, nb::c_contig> out) {
    check(static_cast<int>(out.shape(1)) == head.num_out && out.shape(0) == rows.shape(0), "logits: shape");
    const LinearInput input{program.buffer(buffer), rows.data(), program.width(buffer),
                            static_cast<int>(rows.shape(0)), norm_of(norm, eps)};
    float* to = out.data();
    const Unlocked unlocked;
    context.times.timed("logits", head.num_out, head.num_in,
                        [&] { run_linear(context, head, input, {to, head.num_out, false, false}); });
}

nb::list times_of(const ExecutionContext& context) {
    nb::list rows;
    for (const OperationTime& row : context.times.rows())
        rows.append(nb::make_tuple(row.name, row.num_out, row.num_in, row.count, row.seconds));
    return rows;
}

void bind_values(nb::module_& m) {
    nb::class_<ExecutionContext>(m, "ExecutionContext", "Threads, the kernels of one ISA variant, and scratch memory.")
        .def(nb::init<const std::string&, int, bool>(), "isa"_a, "num_threads"_a, "widens"_a = false)
        .def_prop_ro("isa", [](const ExecutionContext& self) { return self.kernels->name; })
        .def_prop_ro("num_threads", [](const ExecutionContext& self) { return self.pool.num_threads(); })
        .def("keep_times", [](ExecutionContext& self, bool is_on) { self.times.keep(is_on); }, "is_on"_a,
             "Begins to sum up the time of operations anew, or ends it.")
        .def("times", &times_of, "Each operation's name, outputs and inputs of its matrix, calls and seconds.");
    nb::class_<Vector>(m, "Vector", "Floats that kernels read.")
        .def("__init__", [](Vector* self, Array<float, 1> values) {
            new (self) Vector{{values.data(), values.data() + values.size()}};
        })
        .def("values", [](Vector& self) { return FloatView(self.values.data(), {self.values.size()}, nb::find(&self)); },
             "The floats, in place.");
    nb::class_<Matrix>(m, "Matrix", "A packed matrix [num_out, num_in].")
        .def("__init__", &make_matrix, "context"_a, "num_in"_a, "parts"_a, "halves"_a)
        .def("fill", &fill, "context"_a, "first_row"_a, "values"_a)
        .def("fill_codes", &fill_codes, "context"_a, "first_row"_a, "codes"_a, "scales"_a, "mins"_a.none(),
             "sub_scales"_a.none(), "sub_mins"_a.none())
        .def("read_row",
             [](const Matrix& self, int row, nb::ndarray<float, nb::ndim<1>, nb::c_contig> out) {
                 check(row >= 0 && row < self.num_out && static_cast<int>(out.size()) == self.num_in, "no such row");
                 self.copy_row(row, out.data());
             })
        .def("set_bias",
             [](Matrix& self, Array<float, 1> bias) {
                 check(static_cast<int>(bias.size()) == self.num_out, "the bias is not as long as the matrix");
                 self.bias.assign(bias.data(), bias.data() + bias.size());
             })
        .def("memory",
             [](Matrix& self) {
                 auto* data = static_cast<std::uint8_t*>(const_cast<void*>(self.panel(0).view.data));
                 return ByteView(data, {static_cast<std::size_t>(self.num_bytes())}, nb::find(&self));
             },
             "All bytes of the panels, in place.")
        .def_ro("num_out", &Matrix::num_out)
        .def_ro("num_in", &Matrix::num_in)
        .def_prop_ro("num_bytes", &Matrix::num_bytes)
        .def_ro("halves", &Matrix::halves);
    nb::class_<Cache>(m, "Cache", "Keys and values of one layer.")
        .def_static(
            "layers",
            [](int num_layers, int num_blocks, int block_size, int num_kv_heads, int head_dim,
               const std::string& dtype) {
                check(head_dim % 2 == 0, "head_dim must be even");
                return Cache::layers(
                    num_layers, {nullptr, 0, num_blocks, block_size, num_kv_heads, head_dim, kv_dtype_of(dtype)});
            },
            "The caches of a model's layers, in one memory.")
        .def("copy_block", &Cache::copy_block)
        .def(
            "memory",
            [](Cache& self) {
                const std::size_t size = static_cast<std::size_t>(self.memory->size());
                return ByteView(self.memory->as<void>(), {size}, nb::find(&self));
            },
            "All bytes of all layers, as they lie: see KVView in kernels/kernels.h.");
}

void bind_plans(nb::module_& m) {
    nb::class_<TokensPlan>(m, "TokensPlan")
        .def(nb::init<>())
        .def("set", [](TokensPlan& self, Array<std::int32_t, 1> ids) {
            self.ids.assign(ids.data(), ids.data() + ids.size());
        });
    nb::class_<RopePlan>(m, "RopePlan")
        .def("__init__",
             [](RopePlan* self, Array<float, 1> frequencies, float scale) {
                 new (self) RopePlan;
                 self->frequencies.assign(frequencies.data(), frequencies.data() + frequencies.size());
                 self->scale = scale;
             })
        .def("set", [](RopePlan& self, Array<std::int32_t, 1> positions) {
            self.set(positions.data(), static_cast<int>(positions.size()));
        });
    nb::class_<AttentionShape>(m, "AttentionShape").def(nb::init<int, int, int, float, int, float>());
    nb::class_<AttentionPlan>(m, "AttentionPlan")
        .def(nb::init<>())
        .def("set", &set_attention)
        .def_prop_ro("num_units", [](const AttentionPlan& self) { return self.units.size(); });
}

void bind_program(nb::module_& m) {
    nb::class_<Program>(m, "Program", "A recorded graph. What it refers to must outlive it.")
        .def(nb::init<ExecutionContext&>())
        .def("add_buffer", &Program::add_buffer)
        .def("embed", &Program::embed)
        .def("rms_norm", [](Program& self, const Vector& norm, float eps, int in,
                            int out) { self.rms_norm(norm_of(&norm, eps), self.width(in), in, out); })
        .def("linear",
             [](Program& self, const Matrix& matrix, const Vector* norm, float eps, int in, int out, bool adds,
                bool silu) { self.linear(matrix, norm_of(norm, eps), in, out, adds, silu); },
             "matrix"_a, "norm"_a.none(), "eps"_a, "in"_a, "out"_a, "adds"_a, "silu"_a)
        .def("rope",
             [](Program& self, Cache& cache, const AttentionPlan& plan, const RopePlan& rope, const Vector* query,
                const Vector* key, float eps, int qkv) {
                 self.rope(cache, plan, rope, norm_of(query, eps), norm_of(key, eps), qkv);
             },
             "cache"_a, "plan"_a, "rope"_a, "query"_a.none(), "key"_a.none(), "eps"_a, "qkv"_a)
        .def("attention", [](Program& self, const Cache& cache, const AttentionPlan& plan, int q,
                             int out) { self.attention(cache, plan, q, self.width(q), out); })
        .def("silu_mul", [](Program& self, int in, int out) { self.silu_mul(self.width(out), in, out); })
        .def("add", [](Program& self, int in, int out) { self.add(self.width(out), in, out); })
        .def("run", &Program::run, nb::call_guard<Unlocked>())
        .def(
            "view",
            [](Program& self, int buffer, int num_tokens) {
                self.reserve(num_tokens);
                const std::size_t rows = static_cast<std::size_t>(num_tokens);
                return FloatView(self.buffer(buffer), {rows, static_cast<std::size_t>(self.width(buffer))},
                                 nb::find(&self));
            },
            "The first rows of a buffer, in place: valid until there is need for more rows.");
    m.def("logits", &read_out, "context"_a, "program"_a, "buffer"_a, "rows"_a, "norm"_a.none(), "eps"_a, "head"_a,
          "out"_a);
}

}  // namespace

NB_MODULE(_cpu, m) {
    m.doc() = "The CPU kernels; see octavo.ops.cpu.";
    m.attr("PANEL") = kPanel;
    m.attr("SUPER_BLOCK_LEN") = kSuperBlockInputs;
    m.attr("SEGMENT_KEYS") = kSegmentKeys;
    m.def("formats", &formats, "Formats of packed weights: (name, bits, group, group of the inputs, padding).");
    m.def("isa_names", &isa_names, "ISA variants of the kernels that this processor can run, best first.");
    bind_values(m);
    bind_plans(m);
    bind_program(m);
    bind_limits(m);
    bind_sample(m);
    bind_checked_file(m);
}
