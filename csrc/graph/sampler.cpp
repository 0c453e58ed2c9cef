// Sampling, row by row, over the vector kernels of kernels/sampling.h.
//
// First every row is looked at in segments, which threads share: largest logit, sum of exponentials. A greedy row whose
// logits nobody edits needs no more. Then each row is one thread's: edited in a copy, weighed, cut and drawn from.
// Nothing is sorted: the cut of top-k and top-p is found by walking down a histogram of the weights.

#include "graph/sampler.h"

#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/util.h"

namespace octavo {

namespace {

constexpr int kScanLen = 8192;    // logits of one unit
constexpr int kDrawBlock = 1024;  // weights whose sum is one entry of the cumulative distribution
constexpr int kTopBlock = 1024;   // logits that are looked through before the bar for the most likely ones is raised
constexpr int kSlack = 16;        // a vector may be written past the last place collected
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::uint32_t to_bits(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof x);
    return bits;
}

float from_bits(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// Weights are never negative, so their bits are in the order of their values: those of 1 end below 2^30. A histogram
// looks at 11 bits, then, within one bin, at the next 11, then at the last 8.
struct Histogram {
    static constexpr int kBins = 2048;
    std::array<std::int32_t, kBins> counts;
    std::array<double, kBins> masses;

    void clear() { counts.fill(0), masses.fill(0.0); }
    void add(int bin, float weight) { ++counts[bin], masses[bin] += weight; }
};

// One thread's memory, kept between calls.
struct Scratch {
    std::vector<float> weights;  // [vocab]
    std::vector<std::int32_t> places;  // [vocab + kSlack]
    std::vector<double> masses;  // of blocks
    std::vector<std::uint64_t> keys;
    Histogram coarse, fine;
};

// The memory of the calls from one thread. No worker ever asks for more: that could fail where nobody can catch it.
struct State {
    std::vector<ScanResult> segments;
    std::vector<Scratch> scratch;
};

State& state() {
    static thread_local State state;
    return state;
}

// Natural-log probabilities of one row: x - largest - log_sum.
struct Normalizer {
    double largest, log_sum;
    int largest_at;

    bool is_finite() const { return std::isfinite(largest); }
    float logprob(float x) const { return static_cast<float>((x - largest) - log_sum); }
};

Normalizer combine(const ScanResult* segments, int count) {
    Normalizer result{-static_cast<double>(kInfinity), 0.0, 0};
    for (int i = 0; i < count; ++i) {
        const ScanResult& segment = segments[i];
        if (std::isnan(segment.largest)) return {segment.largest, segment.largest, segment.largest_at + i * kScanLen};
        if (segment.largest <= result.largest) continue;
        result.largest = segment.largest;
        result.largest_at = segment.largest_at + i * kScanLen;
    }
    double sum = 0.0;
    for (int i = 0; i < count; ++i)
        if (segments[i].largest != -kInfinity) sum += segments[i].sum * std::exp(segments[i].largest - result.largest);
    result.log_sum = std::log(sum);
    return result;
}

// What one call works on. The memory belongs to the calling thread.
struct Call {
    const Kernels& kernels;
    const Logits& logits;
    const Scored& scored;
    int num_top;
    State& memory;

    const float* row(int i) const { return logits.values + i * logits.stride; }
    Normalizer normalizer(int i) const {
        const int count = ceil_div(logits.vocab, kScanLen);
        return combine(memory.segments.data() + static_cast<std::int64_t>(i) * count, count);
    }
};

std::size_t top_capacity(int vocab, int num_top) {
    return std::min<std::size_t>(vocab, 2 * std::size_t{static_cast<unsigned>(num_top)} + 2 * kTopBlock);
}

void reserve(State& memory, int num_threads, const Logits& logits, int num_top) {
    const std::size_t vocab = logits.vocab;
    memory.segments.resize(std::size_t{static_cast<unsigned>(logits.num_rows)} * ceil_div(logits.vocab, kScanLen));
    memory.scratch.resize(std::max<std::size_t>(memory.scratch.size(), num_threads));
    const auto grow = [](auto& values, std::size_t size) { values.resize(std::max(values.size(), size)); };
    for (Scratch& scratch : memory.scratch) {
        grow(scratch.weights, vocab);
        grow(scratch.places, vocab + kSlack);
        grow(scratch.masses, ceil_div(logits.vocab, kDrawBlock));
        scratch.keys.reserve(top_capacity(logits.vocab, num_top));
    }
}

void scan_segments(Pool& pool, const Call& call) {
    const int vocab = call.logits.vocab, count = ceil_div(vocab, kScanLen);
    pool.each(call.logits.num_rows * count, [&](int unit, int) {
        const int start = unit % count * kScanLen;
        call.kernels.scan(call.row(unit / count) + start, std::min(kScanLen, vocab - start),
                          &call.memory.segments[unit]);
    });
}

// The most likely tokens

// Ascending keys are descending logits, equal ones by id. (Adding 0 makes -0 the 0 that it equals.)
std::uint64_t top_key(float x, int id) {
    const std::uint32_t bits = to_bits(x + 0.0f);
    const std::uint32_t ascending = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
    return std::uint64_t{~ascending} << 32 | static_cast<std::uint32_t>(id);
}

// Leaves the smallest `count` keys, and says how large a logit must be to get among them later.
float raise_bar(std::vector<std::uint64_t>& keys, int count, const float* x) {
    std::nth_element(keys.begin(), keys.begin() + (count - 1), keys.end());
    keys.resize(count);
    return std::nextafter(x[keys.back() & 0xffffffffu], kInfinity);
}

void find_top(const Call& call, int row, const Normalizer& normalizer, Scratch& scratch) {
    const float* x = call.row(row);
    const int vocab = call.logits.vocab, num_top = call.num_top;
    if (num_top == 0) return;
    std::vector<std::uint64_t>& keys = scratch.keys;
    keys.clear();
    int start = std::min(vocab, std::max(num_top, kTopBlock));
    for (int id = 0; id < start; ++id) keys.push_back(top_key(x[id], id));
    float bar = raise_bar(keys, num_top, x);
    for (; start < vocab; start += kTopBlock) {
        const int length = std::min(kTopBlock, vocab - start);
        const int count = call.kernels.collect(x + start, length, bar, kInfinity, scratch.places.data());
        for (int i = 0; i < count; ++i) {
            const int id = start + scratch.places[i];
            keys.push_back(top_key(x[id], id));
        }
        if (keys.size() >= 2 * static_cast<std::size_t>(num_top) + kTopBlock / 4) bar = raise_bar(keys, num_top, x);
    }
    raise_bar(keys, num_top, x);
    std::sort(keys.begin(), keys.end());
    const std::int64_t first = static_cast<std::int64_t>(row) * num_top;
    for (int i = 0; i < num_top; ++i) {
        const std::int64_t id = keys[i] & 0xffffffffu;
        call.scored.top_ids[first + i] = id;
        call.scored.top_logprobs[first + i] = normalizer.logprob(x[id]);
    }
}

void score_row(const Call& call, int row, std::int64_t id, RowStatus status, Scratch& scratch) {
    const float* x = call.row(row);
    const Normalizer normalizer = call.normalizer(row);
    const bool is_largest = x[id] == normalizer.largest;
    call.scored.ids[row] = id;
    call.scored.logprobs[row] = normalizer.logprob(x[id]);
    call.scored.ranks[row] = 1 + (is_largest ? 0 : call.kernels.count_above(x, call.logits.vocab, x[id]));
    call.scored.statuses[row] = static_cast<int>(normalizer.is_finite() ? status : RowStatus::not_finite);
    find_top(call, row, normalizer, scratch);
}

// Edits

struct Span {
    std::int64_t first, end;
    bool is_empty() const { return first == end; }
};

Span of_row(const Pairs& pairs, std::int64_t row) {
    const auto found = std::equal_range(pairs.rows, pairs.rows + pairs.count, row);
    return {found.first - pairs.rows, found.second - pairs.rows};
}

struct Edits {
    Span seen, biased, banned, allowed;
    bool is_none() const { return seen.is_empty() && biased.is_empty() && banned.is_empty() && allowed.is_empty(); }
};

Edits edits_of(const Rules& rules, int row) {
    return {of_row(rules.seen, row), of_row(rules.biased, row), of_row(rules.banned, row), of_row(rules.allowed, row)};
}

// Repetition (Keskar et al. 2019, CTRL, section 4.1), then frequency and presence, as the OpenAI API defines them.
float penalized(float x, const Rules& rules, int row, float count) {
    const float repetition = std::max(rules.repetition[row], FLT_MIN);
    x = x > 0.0f ? x / repetition : x * repetition;
    if (x > FLT_MAX) x = FLT_MAX;  // an infinite logit would make the difference from itself NaN
    x -= rules.frequency[row] * count;
    return x - (count > 0.0f ? rules.presence[row] : 0.0f);
}

// The row after penalties, bias and masks, in the scratch memory. What is not allowed is -infinity from the start, and
// no edit changes that.
float* edit(const Call& call, const Rules& rules, int row, const Edits& edits, Scratch& scratch) {
    float* x = scratch.weights.data();
    const float* from = call.row(row);
    if (edits.allowed.is_empty()) {
        std::copy_n(from, call.logits.vocab, x);
    } else {
        std::fill_n(x, call.logits.vocab, -kInfinity);
        for (std::int64_t i = edits.allowed.first; i < edits.allowed.end; ++i)
            x[rules.allowed.tokens[i]] = from[rules.allowed.tokens[i]];
    }
    for (std::int64_t i = edits.seen.first; i < edits.seen.end; ++i) {
        float& value = x[rules.seen.tokens[i]];
        if (value != -kInfinity) value = penalized(value, rules, row, rules.seen_counts[i]);
    }
    for (std::int64_t i = edits.biased.first; i < edits.biased.end; ++i) {
        float& value = x[rules.biased.tokens[i]];
        if (value != -kInfinity) value += rules.bias[i];
    }
    for (std::int64_t i = edits.banned.first; i < edits.banned.end; ++i) x[rules.banned.tokens[i]] = -kInfinity;
    return x;
}

// Cuts

// A walk down the weights: what it has passed, and where it stops, at a number of tokens or at a sum of weights.
struct Passed {
    std::int64_t num = 0;
    double mass = 0.0;
};

// The lowest weight that is kept, and how many of those that have exactly it, the first ones by id.
struct Cut {
    float weight;
    std::int64_t num_equal, num_kept_equal;
    double mass;  // of all that is kept
};

// Walks down to the first bin that reaches the goal, or to the lowest one that holds anything.
int walk(const Histogram& histogram, const Passed& goal, Passed& passed) {
    int last = 0;
    Passed before = passed;
    for (int bin = Histogram::kBins - 1; bin >= 0; --bin) {
        if (histogram.counts[bin] == 0) continue;
        last = bin;
        before = passed;
        passed.num += histogram.counts[bin];
        passed.mass += histogram.masses[bin];
        if (passed.num >= goal.num || passed.mass >= goal.mass) break;
    }
    passed = before;
    return last;
}

// The fewest equal weights, at least one, that reach the goal.
std::int64_t num_to_reach(const Passed& goal, const Passed& passed, double weight, std::int64_t num_equal) {
    std::int64_t count = num_equal;
    if (weight > 0.0 && goal.mass - passed.mass < weight * static_cast<double>(num_equal)) {
        count = std::max<std::int64_t>(1, static_cast<std::int64_t>(std::ceil((goal.mass - passed.mass) / weight)));
        while (count > 1 && passed.mass + (count - 1) * weight >= goal.mass) --count;
        while (count < num_equal && passed.mass + count * weight < goal.mass) ++count;
    }
    return std::min({count, num_equal, std::max<std::int64_t>(1, goal.num - passed.num)});
}

// `scratch.coarse` holds the first level.
Cut find_cut(const Kernels& kernels, const float* weights, int vocab, const Passed& goal, Scratch& scratch) {
    Passed passed;
    const std::int32_t* places = scratch.places.data();
    Histogram& fine = scratch.fine;

    const std::uint32_t high = walk(scratch.coarse, goal, passed);
    const int num = kernels.collect(weights, vocab, from_bits(high << 19), from_bits((high << 19) | 0x7ffffu),
                                    scratch.places.data());
    fine.clear();
    for (int i = 0; i < num; ++i) fine.add((to_bits(weights[places[i]]) >> 8) & 0x7ff, weights[places[i]]);
    const std::uint32_t middle = high << 11 | walk(fine, goal, passed);

    fine.clear();
    for (int i = 0; i < num; ++i) {
        const std::uint32_t bits = to_bits(weights[places[i]]);
        if (bits >> 8 == middle) fine.add(bits & 0xff, weights[places[i]]);
    }
    const std::uint32_t low = walk(fine, goal, passed);

    Cut cut{from_bits(middle << 8 | low), fine.counts[low], 0, 0.0};
    cut.num_kept_equal = num_to_reach(goal, passed, cut.weight, cut.num_equal);
    cut.mass = passed.mass + static_cast<double>(cut.num_kept_equal) * cut.weight;
    return cut;
}

const Cut& stricter(const Cut& a, const Cut& b) {
    if (a.weight != b.weight) return a.weight > b.weight ? a : b;
    return a.num_kept_equal < b.num_kept_equal ? a : b;
}

// Weights that can be drawn: those of at least `floor`, but of those that equal it only the ones up to `last_equal`.
struct Kept {
    float floor;
    int last_equal;

    float floor_of(int id) const { return id <= last_equal ? floor : from_bits(to_bits(floor) + 1); }
};

Kept keep(const Call& call, const Rules& rules, int row, const float* weights, Scratch& scratch) {
    constexpr std::int64_t kAll = std::numeric_limits<std::int64_t>::max();
    const int vocab = call.logits.vocab;
    const bool has_top_k = rules.top_k[row] > 0 && rules.top_k[row] < vocab, has_top_p = rules.top_p[row] < 1.0f;
    Kept kept{std::max(rules.min_p[row], 0.0f), vocab};
    if (!has_top_k && !has_top_p) return kept;

    scratch.coarse.clear();
    for (int id = 0; id < vocab; ++id) scratch.coarse.add((to_bits(weights[id]) >> 19) & 0x7ff, weights[id]);
    Cut cut{0.0f, 0, 0, 0.0};
    for (int bin = Histogram::kBins - 1; bin >= 0; --bin) cut.mass += scratch.coarse.masses[bin];
    if (has_top_k) cut = find_cut(call.kernels, weights, vocab, {rules.top_k[row], kInfinity}, scratch);
    if (has_top_p) {
        const double goal = static_cast<double>(rules.top_p[row]) * cut.mass;
        cut = stricter(find_cut(call.kernels, weights, vocab, {kAll, goal}, scratch), cut);
    }
    if (cut.weight < kept.floor) return kept;
    kept.floor = cut.weight;
    if (cut.num_kept_equal < cut.num_equal) {
        call.kernels.collect(weights, vocab, cut.weight, cut.weight, scratch.places.data());
        kept.last_equal = scratch.places[cut.num_kept_equal - 1];
    }
    return kept;
}

// Draws

double mass_of(const Kernels& kernels, const float* weights, int start, int end, const Kept& kept) {
    const int turn = std::clamp(kept.last_equal + 1, start, end);
    double mass = 0.0;
    if (turn > start) mass += kernels.mass(weights + start, turn - start, kept.floor_of(start));
    if (turn < end) mass += kernels.mass(weights + turn, end - turn, kept.floor_of(turn));
    return mass;
}

// The inverse of the cumulative distribution, in vocabulary order, at `uniform`; `otherwise` where nothing is kept.
int invert(const Call& call, const float* weights, const Kept& kept, double uniform, Scratch& scratch, int otherwise) {
    const int vocab = call.logits.vocab, num_blocks = ceil_div(vocab, kDrawBlock);
    double total = 0.0;
    for (int i = 0; i < num_blocks; ++i) {
        const int start = i * kDrawBlock;
        scratch.masses[i] = mass_of(call.kernels, weights, start, std::min(start + kDrawBlock, vocab), kept);
        total += scratch.masses[i];
    }
    const double target = uniform * total;
    double reached = 0.0;
    int block = -1;  // the first that goes past the target; if rounding left none, the last that holds anything
    for (int i = 0; i < num_blocks; ++i) {
        if (scratch.masses[i] == 0.0) continue;
        if (block >= 0) reached += scratch.masses[block];
        block = i;
        if (reached + scratch.masses[i] > target) break;
    }
    int drawn = otherwise;
    for (int id = block * kDrawBlock; block >= 0 && id < std::min((block + 1) * kDrawBlock, vocab); ++id) {
        if (weights[id] < kept.floor_of(id) || weights[id] == 0.0f) continue;
        drawn = id;
        reached += weights[id];
        if (reached > target) break;
    }
    return drawn;
}

struct Largest {
    float value;
    int at;
};

void sample_row(const Call& call, const Rules& rules, int row, Scratch& scratch) {
    const int vocab = call.logits.vocab;
    const Normalizer normalizer = call.normalizer(row);
    const Edits edits = edits_of(rules, row);
    const float* x = call.row(row);
    Largest largest{static_cast<float>(normalizer.largest), normalizer.largest_at};
    if (!edits.is_none()) {
        x = edit(call, rules, row, edits, scratch);
        largest.value = call.kernels.peak(x, vocab, &largest.at);
    }
    int id = largest.at;
    // Where a logit was infinite or became so, there is no distribution to draw from.
    if (rules.temperature[row] > 0.0f && std::isfinite(largest.value) && normalizer.is_finite()) {
        float* weights = scratch.weights.data();
        call.kernels.weigh(x, vocab, largest.value, rules.temperature[row], weights);
        const Kept kept = keep(call, rules, row, weights, scratch);
        id = invert(call, weights, kept, rules.uniform[row], scratch, id);
    }
    score_row(call, row, id, largest.value == -kInfinity ? RowStatus::nothing_allowed : RowStatus::ok, scratch);
}

// Whether the row's token is known once it is scanned.
bool is_scanned_only(const Rules& rules, int row) {
    return !(rules.temperature[row] > 0.0f) && edits_of(rules, row).is_none();
}

}  // namespace

void sample(Pool& pool, const Kernels& kernels, const Logits& logits, const Rules& rules, int num_top,
            const Scored& scored) {
    const Call call{kernels, logits, scored, num_top, state()};
    reserve(call.memory, pool.num_threads(), logits, num_top);
    scan_segments(pool, call);
    bool is_light = true;
    for (int row = 0; row < logits.num_rows && is_light; ++row) is_light = num_top == 0 && is_scanned_only(rules, row);
    if (is_light) {
        for (int row = 0; row < logits.num_rows; ++row) sample_row(call, rules, row, call.memory.scratch[0]);
        return;
    }
    pool.each(logits.num_rows,
              [&](int row, int thread) { sample_row(call, rules, row, call.memory.scratch[thread]); });
}

void score(Pool& pool, const Kernels& kernels, const Logits& logits, const std::int64_t* targets, int num_top,
           const Scored& scored) {
    const Call call{kernels, logits, scored, num_top, state()};
    reserve(call.memory, pool.num_threads(), logits, num_top);
    scan_segments(pool, call);
    pool.each(logits.num_rows, [&](int row, int thread) {
        score_row(call, row, targets[row], RowStatus::ok, call.memory.scratch[thread]);
    });
}

}  // namespace octavo
