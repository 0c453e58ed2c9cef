// Stored weights to numbers, and the strings of a header to Python: the loops of `weights` that are too long for Python.
//
// Knows one contiguous piece of blocks at a time; files, shapes and what may be read at all are decided in Python. Still
// nothing given here is believed: a number of bytes that does not fit is a ValueError, never a write past the end.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>

#include "core/cpu_features.h"
#include "weights/formats.h"
#include "weights/quantize.h"

namespace nb = nanobind;
using namespace nanobind::literals;

namespace octavo {
namespace {

constexpr int piece_len = 1024;  // values in between, as float32: they stay in the first cache

using Unpack = void (*)(const Byte* blocks, float* values, std::size_t num_blocks);
using Round = bool (*)(const float* values, Byte* words, std::size_t num_values);
using Check = bool (*)(const Byte* words, std::size_t num_words);

template <typename Stored>
OCTAVO_INLINE void unpack_blocks(const Byte* __restrict blocks, float* __restrict values, std::size_t num_blocks) {
    for (std::size_t i = 0; i < num_blocks; ++i)
        Stored::unpack(blocks + i * Stored::num_bytes, values + i * Stored::num_values);
}

// True if all words are finite.
template <typename Target>
OCTAVO_INLINE bool round_values(const float* __restrict values, Byte* __restrict words, std::size_t num_values) {
    std::uint32_t bad = 0;
    for (std::size_t i = 0; i < num_values; ++i) {
        const typename Target::Word word = Target::of(values[i]);
        bad |= Target::bad(word);
        std::memcpy(words + i * sizeof word, &word, sizeof word);
    }
    return bad == 0;
}

template <typename Target>
OCTAVO_INLINE bool check_words(const Byte* words, std::size_t num_words) {
    std::uint32_t bad = 0;
    for (std::size_t i = 0; i < num_words; ++i)
        bad |= Target::bad(load<typename Target::Word>(words + i * sizeof(typename Target::Word)));
    return bad == 0;
}

template <typename Stored>
void unpack_plain(const Byte* blocks, float* values, std::size_t num_blocks) {
    unpack_blocks<Stored>(blocks, values, num_blocks);
}

template <typename Target>
bool round_plain(const float* values, Byte* words, std::size_t num_values) {
    return round_values<Target>(values, words, num_values);
}

template <typename Target>
bool check_plain(const Byte* words, std::size_t num_words) {
    return check_words<Target>(words, num_words);
}

#ifdef OCTAVO_AVX2

template <typename Stored>
OCTAVO_AVX2 void unpack_avx2(const Byte* blocks, float* values, std::size_t num_blocks) {
    unpack_blocks<Stored>(blocks, values, num_blocks);
}

template <typename Target>
OCTAVO_AVX2 bool round_avx2(const float* values, Byte* words, std::size_t num_values) {
    return round_values<Target>(values, words, num_values);
}

template <typename Target>
OCTAVO_AVX2 bool check_avx2(const Byte* words, std::size_t num_words) {
    return check_words<Target>(words, num_words);
}

bool has_avx2() {
    constexpr CpuFeatureSet needed = cpu_feature_set({"avx2"});
    return (present_cpu_features() & needed) == needed;
}

#else

template <typename Stored>
constexpr Unpack unpack_avx2 = unpack_plain<Stored>;
template <typename Target>
constexpr Round round_avx2 = round_plain<Target>;
template <typename Target>
constexpr Check check_avx2 = check_plain<Target>;
bool has_avx2() { return false; }

#endif

// Where codes and scales go, flat; see octavo.weights.quantization.QuantizedArrays.
struct QuantizedArrays {
    std::int8_t* codes;
    std::uint16_t* scales;
    std::uint16_t* mins;
    std::int8_t* sub_scales;
    std::int8_t* sub_mins;
};

// True if all scales are finite.
template <typename Stored>
bool split_blocks(const Byte* blocks, std::size_t num_blocks, const QuantizedArrays& out) {
    constexpr std::size_t groups = Stored::num_values / Stored::group;
    constexpr QuantKind kind = Stored::kind;
    bool is_finite = true;
    for (std::size_t i = 0; i < num_blocks; ++i) {
        typename Stored::Split parts;
        Stored::split(blocks + i * Stored::num_bytes, parts);
        std::memcpy(out.codes + i * Stored::num_values, parts.codes, Stored::num_values);
        out.scales[i] = parts.d;
        is_finite &= Float16::bad(parts.d) == 0 && Float16::bad(parts.m) == 0;
        // With sub-scales the format subtracts its minimum, which is to add one of the other sign.
        if constexpr (kind.has_mins) out.mins[i] = parts.m ^ (kind.has_sub_scales ? 0x8000u : 0u);
        if constexpr (kind.has_sub_scales) std::memcpy(out.sub_scales + i * groups, parts.sub_scales, groups);
        if constexpr (kind.has_sub_scales && kind.has_mins)
            std::memcpy(out.sub_mins + i * groups, parts.sub_mins, groups);
    }
    return is_finite;
}

// What a block's codes and scales are packed as.
struct Quantization {
    Format packed;
    QuantKind kind;
};

struct StoredFormat {
    const char* name;
    std::size_t num_values, num_bytes;  // of a block
    Unpack plain, avx2;
    Quantization quantization;
    bool (*split)(const Byte*, std::size_t, const QuantizedArrays&);  // null: floats
};

template <typename S>
constexpr StoredFormat stored_format() {
    StoredFormat format{S::name, S::num_values, S::num_bytes, unpack_plain<S>, unpack_avx2<S>, {}, nullptr};
    if constexpr (S::is_quantized) {
        format.quantization = {S::packed, S::kind};
        format.split = split_blocks<S>;
    }
    return format;
}

constexpr StoredFormat formats[] = {
    stored_format<F32>(),  stored_format<F16>(),  stored_format<BF16>(), stored_format<Q4_0>(),
    stored_format<Q4_1>(), stored_format<Q5_0>(), stored_format<Q5_1>(), stored_format<Q8_0>(),
    stored_format<Q4_K>(), stored_format<Q5_K>(), stored_format<Q6_K>(),
};

struct TargetFormat {
    const char* name;
    std::size_t num_bytes;  // of a word
    Round plain, avx2;
    Check check_plain, check_avx2;
};

template <typename T>
constexpr TargetFormat target_format() {
    return {T::name, sizeof(typename T::Word), round_plain<T>, round_avx2<T>, check_plain<T>, check_avx2<T>};
}

constexpr TargetFormat targets[] = {target_format<Float32>(), target_format<Bfloat16>(), target_format<Float16>()};

template <typename Table>
const auto& find(const Table& table, const std::string& name, const char* what) {
    const auto found =
        std::find_if(std::begin(table), std::end(table), [&](const auto& row) { return name == row.name; });
    if (found == std::end(table)) throw std::invalid_argument("convert: " + name + " is no " + what);
    return *found;
}

template <typename T>
using Array = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = Array<const Byte>;

bool convert(const Bytes& data, const std::string& stored, const Array<Byte>& words, const std::string& dtype) {
    const StoredFormat& from = find(formats, stored, "stored format");
    const TargetFormat& to = find(targets, dtype, "dtype");
    const std::size_t num_blocks = data.size() / from.num_bytes;
    if (num_blocks * from.num_bytes != data.size() || words.size() / to.num_bytes != num_blocks * from.num_values ||
        words.size() % to.num_bytes != 0)
        throw std::invalid_argument("convert: " + std::to_string(data.size()) + " bytes of " + stored + " do not make " +
                                    std::to_string(words.size()) + " bytes of " + dtype);
    const nb::gil_scoped_release unlocked;
    const bool fast = has_avx2();
    const Unpack unpack = fast ? from.avx2 : from.plain;
    const Round round = fast ? to.avx2 : to.plain;
    const std::size_t piece_blocks = piece_len / from.num_values;
    const Byte* in = data.data();
    Byte* out = words.data();
    bool is_finite = true;
    alignas(64) float values[piece_len];
    for (std::size_t done = 0; done < num_blocks; done += piece_blocks) {
        const std::size_t num = std::min(piece_blocks, num_blocks - done);
        unpack(in, values, num);
        is_finite &= round(values, out, num * from.num_values);
        in += num * from.num_bytes;
        out += num * from.num_values * to.num_bytes;
    }
    return is_finite;
}

// --- quantized matrices -----------------------------------------------------------------------------------------

using Int8s = Array<std::int8_t>;
using Halves = Array<std::uint16_t>;

template <typename T>
T* checked(const std::optional<Array<T>>& array, bool wanted, std::size_t size) {
    if (array.has_value() != wanted || (wanted && array->size() != size))
        throw std::invalid_argument("the arrays do not fit what is written to them");
    return wanted ? array->data() : nullptr;
}

bool split(const Bytes& data, const std::string& stored, const Int8s& codes, const Halves& scales,
           const std::optional<Halves>& mins, const std::optional<Int8s>& sub_scales,
           const std::optional<Int8s>& sub_mins) {
    const StoredFormat& format = find(formats, stored, "stored format");
    if (format.split == nullptr) throw std::invalid_argument("split: " + stored + " is not quantized");
    const std::size_t num_blocks = data.size() / format.num_bytes, num_values = num_blocks * format.num_values;
    if (num_blocks * format.num_bytes != data.size() || codes.size() != num_values || scales.size() != num_blocks)
        throw std::invalid_argument("split: the arrays do not fit the blocks");
    const auto [packed, kind] = format.quantization;
    const std::size_t groups = num_values / static_cast<std::size_t>(traits_of(packed).group_len);
    const QuantizedArrays out{codes.data(), scales.data(), checked(mins, kind.has_mins, num_blocks),
                              checked(sub_scales, kind.has_sub_scales, groups),
                              checked(sub_mins, kind.has_sub_scales && kind.has_mins, groups)};
    const nb::gil_scoped_release unlocked;
    return format.split(data.data(), num_blocks, out);
}

using Values = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

using Quantize = bool (*)(const float* x, std::size_t rows, std::size_t width, const QuantizedArrays& out);

// True if float16 can hold all scales.
template <typename Own>
OCTAVO_INLINE bool quantize_rows(const float* x, std::size_t rows, std::size_t width, const QuantizedArrays& out) {
    constexpr std::size_t len = traits_of(Own::packed).group_len;
    bool is_finite = true;
    std::size_t group = 0;
    for (std::size_t row = 0; row < rows; ++row)
        for (std::size_t first = 0; first < width; first += len, ++group) {
            const std::size_t at = row * width + first;
            const int n = static_cast<int>(std::min(len, width - first));
            std::uint16_t* min = Own::kind.has_mins ? out.mins + group : nullptr;
            is_finite &= Own::quantize(x + at, n, out.codes + at, out.scales[group], min);
        }
    return is_finite;
}

template <typename Own>
bool quantize_plain(const float* x, std::size_t rows, std::size_t width, const QuantizedArrays& out) {
    return quantize_rows<Own>(x, rows, width, out);
}

#ifdef OCTAVO_AVX2
template <typename Own>
OCTAVO_AVX2 bool quantize_avx2(const float* x, std::size_t rows, std::size_t width, const QuantizedArrays& out) {
    return quantize_rows<Own>(x, rows, width, out);
}
#else
template <typename Own>
constexpr Quantize quantize_avx2 = quantize_plain<Own>;
#endif

struct OwnFormat {
    const char* name;
    Quantization quantization;
    Quantize plain, avx2;
};

template <typename O>
constexpr OwnFormat own_format() {
    return {O::name, {O::packed, O::kind}, quantize_plain<O>, quantize_avx2<O>};
}

constexpr OwnFormat own_formats[] = {own_format<OwnInt8>(), own_format<OwnInt4>()};

bool quantize(const Values& values, const std::string& own, const Int8s& codes, const Halves& scales,
              const std::optional<Halves>& mins) {
    const OwnFormat& format = find(own_formats, own, "format of Octavo's own");
    const auto [packed, kind] = format.quantization;
    const std::size_t rows = values.shape(0), width = values.shape(1);
    const std::size_t len = static_cast<std::size_t>(traits_of(packed).group_len);
    if (codes.size() != rows * width || scales.size() != rows * ((width + len - 1) / len))
        throw std::invalid_argument("quantize: the arrays do not fit the values");
    const QuantizedArrays out{codes.data(), scales.data(), checked(mins, kind.has_mins, scales.size()), nullptr,
                              nullptr};
    const nb::gil_scoped_release unlocked;
    return (has_avx2() ? format.avx2 : format.plain)(values.data(), rows, width, out);
}

nb::tuple layout_of(const Quantization& quantization) {
    const FormatTraits& packed = traits_of(quantization.packed);
    const auto [has_mins, has_sub_scales] = quantization.kind;
    return nb::make_tuple(packed.bits, packed.group_len, has_mins, has_sub_scales);
}

nb::dict stored_layouts() {
    nb::dict layouts;
    for (const StoredFormat& format : formats)
        if (format.split != nullptr) layouts[format.name] = layout_of(format.quantization);
    return layouts;
}

nb::dict own_layouts() {
    nb::dict layouts;
    for (const OwnFormat& format : own_formats) layouts[format.name] = layout_of(format.quantization);
    return layouts;
}

bool all_finite(const Bytes& words, const std::string& dtype) {
    const TargetFormat& target = find(targets, dtype, "dtype");
    if (words.size() % target.num_bytes != 0)
        throw std::invalid_argument("all_finite: " + std::to_string(words.size()) + " bytes are no array of " + dtype);
    const nb::gil_scoped_release unlocked;
    return (has_avx2() ? target.check_avx2 : target.check_plain)(words.data(), words.size() / target.num_bytes);
}

// Strings as GGUF has them, length (u64) and bytes, from `start` on: those that lie whole in `window`, `count` at most,
// none longer than `max_bytes`. The list, and where the next one begins.
nb::tuple split_strings(const nb::bytes& window, std::size_t start, std::size_t count, std::size_t max_bytes) {
    const auto* bytes = static_cast<const Byte*>(window.data());
    const std::size_t size = window.size();
    nb::list texts;
    while (texts.size() < count && start <= size && size - start >= 8) {
        const auto length = load<std::uint64_t>(bytes + start);
        if (length > max_bytes || length > size - start - 8) break;
        const auto* text = reinterpret_cast<const char*>(bytes + start + 8);
        PyObject* decoded = PyUnicode_DecodeUTF8(text, static_cast<Py_ssize_t>(length), "surrogateescape");
        if (decoded == nullptr) throw nb::python_error();
        texts.append(nb::steal(decoded));
        start += 8 + length;
    }
    return nb::make_tuple(texts, start);
}

// How many of them lie whole in `window`, as `split_strings` would give them, and where the next one begins.
nb::tuple skip_strings(const nb::bytes& window, std::size_t start, std::size_t count, std::size_t max_bytes) {
    const auto* bytes = static_cast<const Byte*>(window.data());
    const std::size_t size = window.size();
    std::size_t found = 0;
    for (; found < count && start <= size && size - start >= 8; ++found) {
        const auto length = load<std::uint64_t>(bytes + start);
        if (length > max_bytes || length > size - start - 8) break;
        start += 8 + length;
    }
    return nb::make_tuple(found, start);
}

nb::dict block_sizes() {
    nb::dict sizes;
    for (const auto& row : formats) sizes[row.name] = nb::make_tuple(row.num_values, row.num_bytes);
    return sizes;
}

}  // namespace
}  // namespace octavo

NB_MODULE(_convert, m) {
    m.doc() = "Loops over a weight file's bytes; see octavo.weights.formats and octavo.weights.gguf_values.";
    m.def("block_sizes", &octavo::block_sizes, "Stored format -> (values, bytes) of one block.");
    m.def("convert", &octavo::convert, "data"_a.noconvert(), "stored"_a, "words"_a.noconvert(), "dtype"_a,
          "Writes whole blocks of `data` as `dtype` to `words`, both bytes; whether every value is finite in it.");
    m.attr("SUPER_BLOCK_LEN") = octavo::kSuperBlockInputs;
    m.def("stored_layouts", &octavo::stored_layouts, "Quantized stored format -> (bits, group, minimums, sub-scales).");
    m.def("own_layouts", &octavo::own_layouts, "Format that `quantize` makes -> the same.");
    m.def("split", &octavo::split, "data"_a.noconvert(), "stored"_a, "codes"_a.noconvert(), "scales"_a.noconvert(),
          "mins"_a.none(), "sub_scales"_a.none(), "sub_mins"_a.none(),
          "Takes whole blocks of `data` apart into flat arrays; whether every scale is finite.");
    m.def("quantize", &octavo::quantize, "values"_a.noconvert(), "own"_a, "codes"_a.noconvert(),
          "scales"_a.noconvert(), "mins"_a.none(),
          "Codes and scales of float32 [rows, width] in a format of Octavo's own; whether float16 can hold every scale.");
    m.def("all_finite", &octavo::all_finite, "words"_a.noconvert(), "dtype"_a,
          "Whether none of the words, given as bytes, is infinite or NaN.");
    m.def("skip_strings", &octavo::skip_strings, "window"_a, "start"_a, "count"_a, "max_bytes"_a,
          "How many strings lie whole in `window` from `start` on, `count` at most, and where the next one begins.");
    m.def("split_strings", &octavo::split_strings, "window"_a, "start"_a, "count"_a, "max_bytes"_a,
          "The strings that lie whole in `window` from `start` on, `count` at most, and where the next one begins.");
}
