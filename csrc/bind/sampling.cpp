// What Python sees of the sampler. Checks that every index that crosses is within bounds; does no work.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "core/context.h"
#include "graph/sampler.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace octavo;

void bind_sample(nb::module_& m);

namespace {

template <class T, int Dims = 1>
using Array = nb::ndarray<T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;
using LogitsArray = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
using Ints = Array<const std::int64_t>;

void check(bool holds, const std::string& what) {
    if (!holds) throw std::invalid_argument(what);
}

Logits logits_of(const LogitsArray& array) {
    constexpr std::size_t kMost = std::numeric_limits<int>::max() / 2;
    check(array.shape(0) < kMost && array.shape(1) > 0 && array.shape(1) < kMost, "logits: no such shape");
    check(array.size() == 0 || array.shape(1) == 1 || array.stride(1) == 1, "logits: a row must lie together");
    return {array.data(), array.stride(0), static_cast<int>(array.shape(0)), static_cast<int>(array.shape(1))};
}

// The attribute as an array of exactly this type, of `size` values. The owner keeps the memory.
template <class T, int Dims = 1>
T* field(nb::handle owner, const char* name, std::size_t size) {
    const Array<T, Dims> array = nb::cast<Array<T, Dims>>(owner.attr(name), false);
    check(array.size() == size, std::string(name) + ": not as many as there are rows");
    return array.data();
}

void check_tokens(const std::int64_t* tokens, std::size_t count, int vocab, const char* name) {
    const auto is_outside = [vocab](std::int64_t token) { return token < 0 || token >= vocab; };
    if (std::any_of(tokens, tokens + count, is_outside))
        throw std::out_of_range(std::string(name) + ": a token id outside of the vocabulary");
}

Pairs pairs_of(nb::handle rules, const char* name, const Logits& logits) {
    const nb::tuple both = nb::cast<nb::tuple>(rules.attr(name));
    const Ints rows = nb::cast<Ints>(both[0], false), tokens = nb::cast<Ints>(both[1], false);
    const std::size_t count = rows.size();
    check(tokens.size() == count, std::string(name) + ": rows and tokens differ in number");
    check(std::is_sorted(rows.data(), rows.data() + count), std::string(name) + ": not in the order of rows");
    if (count > 0 && (rows.data()[0] < 0 || rows.data()[count - 1] >= logits.num_rows))
        throw std::out_of_range(std::string(name) + ": no such row");
    check_tokens(tokens.data(), count, logits.vocab, name);
    return {rows.data(), tokens.data(), static_cast<std::int64_t>(count)};
}

Rules rules_of(nb::handle rules, const Logits& logits) {
    const std::size_t rows = static_cast<std::size_t>(logits.num_rows);
    const auto floats = [rules, rows](const char* name) { return field<const float>(rules, name, rows); };
    const Pairs seen = pairs_of(rules, "seen_at", logits), biased = pairs_of(rules, "bias_at", logits);
    return {floats("temperature"),
            field<const std::int64_t>(rules, "top_k", rows),
            floats("top_p"),
            floats("min_p"),
            field<const double>(rules, "uniform", rows),
            floats("repetition"),
            floats("frequency"),
            floats("presence"),
            seen,
            field<const float>(rules, "seen_counts", static_cast<std::size_t>(seen.count)),
            biased,
            field<const float>(rules, "bias", static_cast<std::size_t>(biased.count)),
            pairs_of(rules, "banned_at", logits),
            pairs_of(rules, "allowed_at", logits)};
}

Scored scored_of(nb::handle scored, const Logits& logits, int num_top) {
    check(num_top >= 0 && num_top <= logits.vocab, "num_top: more than the vocabulary");
    const std::size_t rows = static_cast<std::size_t>(logits.num_rows), top = rows * static_cast<std::size_t>(num_top);
    return {field<std::int64_t>(scored, "ids", rows),          field<float>(scored, "logprobs", rows),
            field<std::int64_t>(scored, "ranks", rows),        field<std::int64_t, 2>(scored, "top_ids", top),
            field<float, 2>(scored, "top_logprobs", top),      field<std::int64_t>(scored, "statuses", rows)};
}

void call_sample(ExecutionContext& context, const LogitsArray& logits, nb::object rules, int num_top,
                 nb::object scored) {
    const Logits in = logits_of(logits);
    const Rules by = rules_of(rules, in);
    const Scored out = scored_of(scored, in, num_top);
    const nb::gil_scoped_release unlocked;
    context.times.timed("sample", 0, 0, [&] { sample(context.pool, *context.kernels, in, by, num_top, out); });
}

void call_score(ExecutionContext& context, const LogitsArray& logits, const Ints& targets, int num_top,
                nb::object scored) {
    const Logits in = logits_of(logits);
    check(targets.size() == logits.shape(0), "targets: not one a row");
    check_tokens(targets.data(), targets.size(), in.vocab, "targets");
    const Scored out = scored_of(scored, in, num_top);
    const nb::gil_scoped_release unlocked;
    score(context.pool, *context.kernels, in, targets.data(), num_top, out);
}

}  // namespace

void bind_sample(nb::module_& m) {
    m.def("sample", &call_sample, "context"_a, "logits"_a.noconvert(), "rules"_a, "num_top"_a, "scored"_a,
          "One token a row of logits [rows, vocab] by a SampleRules, its pairs in the order of rows, into a Scored.");
    m.def("score", &call_score, "context"_a, "logits"_a.noconvert(), "targets"_a.noconvert(), "num_top"_a, "scored"_a,
          "The scores of given tokens, one a row of logits [rows, vocab], into a Scored.");
}
