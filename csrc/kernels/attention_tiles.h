// Attention (attention.h) with its products on tile registers, over keys and values in bfloat16, or in int8, whose
// codes are numbers of bfloat16 as well. Queries and weights are rounded to bfloat16; sums are float32.
//
// Keys are walked in spans of kSpanKeys that begin at multiples of it; rows (a query's heads of the group, query by
// query) in bands of two tiles. A band's scores of a span go to memory, become weights there, and those are multiplied
// with the span's values. The tile registers work while the vector registers do: on the scores of the band that comes
// next, and on the values of the one before.
//
// Every output of a tile is a sum of its own, and what a row does not see adds +0 to it, so a row's bits depend on no
// other row. (A zero's sign could: `finish_state` drops it.)
#pragma once

#include "kernels/attention.h"
#include "simd/vec.h"

namespace {

static_assert(W == kTileRows, "a row of a tile is a vector");

constexpr int kSpanKeys = 64;
constexpr int kBandRows = 2 * kTileRows;
constexpr int kTileWords = kTileRows * kTileInputs;  // bfloat16 of a tile
constexpr int kTileFloats = kTileRows * 16;
constexpr int kTileRunRows = 3 * kBandRows;  // that share what is brought together of the values
constexpr int kKeyColumns = kSpanKeys + W;  // of keys that are copied: vectors are stored past the end

// 2^x for weights, which are rounded to bfloat16: relative error 9e-5 = 2^-13.5. Exactly 1 at 0; 0 for minus infinity.
OCTAVO_INLINE vf rough_exp2(vf x) {
    const vf r = fraction(x);
    vf p = splat(0.07706713676452637f);
    p = fma(p, r, splat(0.22764486074447632f));
    p = fma(p, r, splat(0.6951168179512024f));
    p = fma(p, r, splat(1.0f));
    return times_power(p, x);
}

// Keys [begin, begin + kSpanKeys), rows [row, row + kBandRows) of the run; and which of the two places for scores and
// weights.
struct Piece {
    int begin, row, place;
};

// The scratch memory of a call.
struct TileRoom {
    std::uint16_t* queries;  // [tiles of rows][tiles of dimensions][16][32]
    float* sums;  // [tiles of rows][tiles of dimensions][16][16]: dimensions as `interleave` leaves them
    float* totals;  // [rows][16]: a row's weights, in lanes
    float* largest;  // [rows]
    float* scores[2];  // [band's rows][kSpanKeys]
    std::uint16_t* weights[2];  // [2 tiles of rows][halves of the span][16][32]
    float* factors[2];  // [band's rows]: what its sums are multiplied with when the piece's weights are added
    std::uint16_t* values;  // [halves of the span][tiles of dimensions][16 pairs of keys][16][2]
    std::uint32_t* keys;  // [pairs of dimensions][kKeyColumns], where keys are copied
    float* peaks;  // [16][16]: the maxima of rows, in lanes
    float* bases;  // [16]
    float* scales;  // of the span's keys, then of its values
    std::uint16_t* ends;  // [2][32]: the last dimensions of two values, padded with zeros
    std::uint16_t* zeros;  // a value
    std::int64_t num_floats;
};

OCTAVO_INLINE TileRoom tile_room(float* from, int count, int head_dim) {
    const std::int64_t rows = round_up(count, kBandRows), dim = round_up(head_dim, kTileInputs);
    const auto line = reinterpret_cast<std::uintptr_t>(from) % 64 / sizeof(float);
    float* at = from + (16 - line) % 16;
    const auto floats = [&](std::int64_t n) {
        float* taken = at;
        at += (n + 15) / 16 * 16;
        return taken;
    };
    const auto words = [&](std::int64_t n) { return reinterpret_cast<std::uint16_t*>(floats((n + 1) / 2)); };
    TileRoom room{};
    room.queries = words(rows * dim);
    room.sums = floats(rows * dim);
    room.totals = floats(rows * 16);
    room.largest = floats(rows);
    for (int place = 0; place < 2; ++place) {
        room.scores[place] = floats(kBandRows * kSpanKeys);
        room.weights[place] = words(kBandRows * kSpanKeys);
        room.factors[place] = floats(kBandRows);
    }
    room.values = words(kSpanKeys * dim);
    room.keys = reinterpret_cast<std::uint32_t*>(floats(dim / 2 * kKeyColumns));
    room.peaks = floats(16 * 16);
    room.bases = floats(16);
    room.scales = floats(2 * kSpanKeys + W);
    room.ends = words(2 * kTileInputs);
    room.zeros = words(dim);
    room.num_floats = at - from + 16;
    return room;
}

template <class T>
struct TileAttention {
    static constexpr int kHalves = kSpanKeys / kTileInputs;

    const KVView& kv;
    const AttendArgs& args;
    TileRoom room;
    States states;
    const int count = args.num_queries * args.group;
    const int depth = round_up(kv.head_dim, kTileInputs) / kTileInputs;  // tiles of 32 dimensions
    float factor = args.scale * kLog2E;  // of scores

    int first = 0, end = 0;  // keys that some query of the run sees
    const std::uint16_t* key_tiles[kSpanKeys / 16] = {};
    std::int64_t key_stride = 0;  // bytes
    const T* value_rows[kSpanKeys] = {};
    const T* next_rows[kSpanKeys] = {};
    int values_at_begin = -1, scales_at_begin = -1;  // the span whose values, or scales, are there

    T* block(int index) const { return keys_at<T>(kv, args.blocks[index], args.kv_head); }
    int position_of(int row) const { return args.first_position + row / args.group; }
    int first_seen(int position) const {
        const int seen = args.window > 0 && position >= args.window ? position - args.window + 1 : 0;
        return seen > args.first_key ? seen : args.first_key;
    }
    int end_seen(int position) const { return position + 1 < args.end_key ? position + 1 : args.end_key; }
    int last_row(const Piece& piece) const {
        return (piece.row + kBandRows < count ? piece.row + kBandRows : count) - 1;
    }
    bool has_two(const Piece& piece) const { return piece.row + kTileRows < count; }
    bool copies_keys() const { return kScaled<T> || kv.block_size % 16 != 0 || kv.head_dim % kTileInputs != 0; }

    // --- what is multiplied ---------------------------------------------------------------------------------------

    // Queries, in tiles. The scale comes behind the product: what is rounded is the query as it is.
    void pack_queries() {
        const int dim = depth * kTileInputs, rows = round_up(count, kBandRows);
        std::memset(room.queries, 0, sizeof(std::uint16_t) * static_cast<std::size_t>(rows) * dim);
        for (int row = 0; row < count; ++row) {
            const int head = args.kv_head * args.group + row % args.group;
            const float* q = args.q + row / args.group * args.q_stride + std::int64_t{head} * kv.head_dim;
            std::uint16_t* to = room.queries + row / kTileRows * kTileRows * dim + row % kTileRows * kTileInputs;
            int d = 0;
            for (; d + kTileInputs <= kv.head_dim; d += kTileInputs)
                store_rounded(to + d * kTileRows, load(q + d), load(q + d + W));
            if (d == kv.head_dim) continue;
            float rest[kTileInputs] = {};
            std::memcpy(rest, q + d, sizeof(float) * static_cast<std::size_t>(kv.head_dim - d));
            store_rounded(to + d * kTileRows, load(rest), load(rest + W));
        }
    }

    // The span's keys as [pairs of dimensions][kSpanKeys] pairs: where they lie, or copied.
    void bring_keys(int begin) {
        if (copies_keys()) {
            copy_keys(begin);
            for (int i = 0; i < kSpanKeys / 16; ++i)
                key_tiles[i] = reinterpret_cast<const std::uint16_t*>(room.keys + i * 16);
            return;
        }
        for (int i = 0; i < kSpanKeys / 16; ++i) {
            // Where nobody sees any of the 16 keys, others are multiplied, for nothing.
            int key = begin + i * 16;
            key = key < first / 16 * 16 ? first / 16 * 16 : key < end ? key : (end - 1) / 16 * 16;
            const T* keys = block(key / kv.block_size) + key % kv.block_size * 2;
            key_tiles[i] = reinterpret_cast<const std::uint16_t*>(keys);
        }
    }

    void copy_keys(int begin) {
        const int last = begin + kSpanKeys < end ? begin + kSpanKeys : end;
        for (int key = begin > first ? begin : first, n; key < last; key += n) {
            const int place = key % kv.block_size, left = kv.block_size - place;
            n = left < last - key ? left : last - key;
            const T* keys = block(key / kv.block_size);
            for (int i = 0; i < n; i += W) copy_pairs(keys, place + i, room.keys + (key + i - begin));
        }
    }

    // 16 keys of a block, from `place` on; fewer where the block ends, and then others behind them.
    void copy_pairs(const T* keys, int place, std::uint32_t* to) const {
        for (int pair = 0; pair < kv.head_dim / 2; ++pair, to += kKeyColumns) {
            vu words;
            if constexpr (kScaled<T>) {
                const T* from = keys + std::int64_t{2} * pair * kv.block_size + place;
                words = paired(load(from), load(from + kv.block_size));
            } else {
                words = load_as<vu>(keys + (std::int64_t{pair} * kv.block_size + place) * 2);
            }
            std::memcpy(to, &words, sizeof words);
        }
    }

    // Numbers that bfloat16 holds exactly, as pairs.
    static vu paired(vf low, vf high) { return (vu)low >> 16 | ((vu)high & 0xffff0000u); }

    // Where each of the span's values lies; zeros for those that nobody sees.
    void find_values(int begin, const T** rows) const {
        const auto* zeros = reinterpret_cast<const T*>(room.zeros);
        int key = begin;
        for (; key < first; ++key) *rows++ = zeros;
        const int last = begin + kSpanKeys < end ? begin + kSpanKeys : end;
        while (key < last) {
            const int place = key % kv.block_size, left = kv.block_size - place;
            const int n = left < last - key ? left : last - key;
            const T* row = values_at(kv, block(key / kv.block_size)) + std::int64_t{place} * kv.head_dim;
            for (int i = 0; i < n; ++i, row += kv.head_dim) *rows++ = row;
            key += n;
        }
        for (; key < begin + kSpanKeys; ++key) *rows++ = zeros;
    }

    // The span's values as pairs of keys, in tiles; what comes after them is asked for.
    void bring_values(int begin) {
        if (values_at_begin == begin) return;
        find_values(begin, value_rows);
        find_values(begin + kSpanKeys < end ? begin + kSpanKeys : begin, next_rows);
        values_at_begin = begin;
        for (int key = 0; key < kSpanKeys; key += 2) {
            std::uint16_t* to = room.values + key / kTileInputs * depth * 2 * kTileWords + key % kTileInputs * 16;
            const T *x = value_rows[key], *y = value_rows[key + 1];
            const char *later = reinterpret_cast<const char*>(next_rows[key]),
                       *last = reinterpret_cast<const char*>(next_rows[key + 1]);
            for (int line = 0; line < kv.head_dim * static_cast<int>(sizeof(T)); line += 64)
                __builtin_prefetch(later + line, 0, 2), __builtin_prefetch(last + line, 0, 2);
            if constexpr (kScaled<T>) {
                for (int d = 0; d < kv.head_dim; d += W, to += kTileWords) {
                    const vu pairs = paired(load(x + d), load(y + d));
                    std::memcpy(to, &pairs, sizeof pairs);
                }
            } else {
                int d = 0;
                for (; d + kTileInputs <= kv.head_dim; d += kTileInputs, to += 2 * kTileWords)
                    interleave(x + d, y + d, to, to + kTileWords);
                if (d == kv.head_dim) continue;
                const auto rest = sizeof(T) * static_cast<std::size_t>(kv.head_dim - d);
                std::memcpy(room.ends, x + d, rest);
                std::memcpy(room.ends + kTileInputs, y + d, rest);
                interleave(room.ends, room.ends + kTileInputs, to, to + kTileWords);
            }
        }
    }

    // --- tiles ----------------------------------------------------------------------------------------------------

    // Steps of the products that are under way: four at a time, or two where there is but one tile of rows.
    Piece scored{-1, 0, 0}, gathered{-1, 0, 0};
    int score_step = 0, num_score_steps = 0, gather_step = 0, num_gather_steps = 0;

    void begin_products(const Piece& next, const Piece& before) {
        scored = next, gathered = before;
        score_step = gather_step = 0;
        num_score_steps = next.begin < 0 ? 0 : kSpanKeys / 32 * depth;
        num_gather_steps = before.begin < 0 ? 0 : kHalves * depth;
    }

    // Goes on until `part` of `parts` is done.
    void multiply_on(int part, int parts) {
        const int until = (num_score_steps + num_gather_steps) * part / parts;
        for (; score_step < num_score_steps && score_step < until; ++score_step)
            has_two(scored) ? add_scores<true>(score_step) : add_scores<false>(score_step);
        for (; gather_step < num_gather_steps && num_score_steps + gather_step < until; ++gather_step)
            has_two(gathered) ? add_values<true>(gather_step) : add_values<false>(gather_step);
    }

    template <bool kTwo>
    void add_scores(int step) {
        const int pair = step / depth, d = step % depth;
        const std::uint16_t* q = room.queries + (scored.row / kTileRows * depth + d) * kTileWords;
        if (d == 0) {
            tile_zero<0>(), tile_zero<1>();
            if (kTwo) tile_zero<2>(), tile_zero<3>();
        }
        const char* keys = reinterpret_cast<const char*>(key_tiles[2 * pair]);
        const char* more = reinterpret_cast<const char*>(key_tiles[2 * pair + 1]);
        tile_load<4>(q, 64);
        tile_load<6>(keys + d * 16 * key_stride, key_stride);
        tile_products_bf16<0, 4, 6>();
        tile_load<7>(more + d * 16 * key_stride, key_stride);
        tile_products_bf16<1, 4, 7>();
        if (kTwo) {
            tile_load<5>(q + depth * kTileWords, 64);
            tile_products_bf16<2, 5, 6>();
            tile_products_bf16<3, 5, 7>();
        }
        if (d != depth - 1) return;
        float* to = room.scores[scored.place] + pair * 32;
        tile_store<0>(to, kSpanKeys * 4);
        tile_store<1>(to + 16, kSpanKeys * 4);
        if (!kTwo) return;
        tile_store<2>(to + kTileRows * kSpanKeys, kSpanKeys * 4);
        tile_store<3>(to + kTileRows * kSpanKeys + 16, kSpanKeys * 4);
    }

    template <bool kTwo>
    void add_values(int step) {
        const int d = step / kHalves, half = step % kHalves;
        float* sums = room.sums + (gathered.row / kTileRows * depth + d) * 2 * kTileFloats;
        float* below = sums + depth * 2 * kTileFloats;
        if (half == 0) {
            tile_load<0>(sums, 64), tile_load<1>(sums + kTileFloats, 64);
            if (kTwo) tile_load<2>(below, 64), tile_load<3>(below + kTileFloats, 64);
        }
        const std::uint16_t* weights = room.weights[gathered.place] + half * kTileWords;
        const std::uint16_t* values = room.values + (half * depth + d) * 2 * kTileWords;
        tile_load<4>(weights, 64);
        tile_load<6>(values, 64);
        tile_products_bf16<0, 4, 6>();
        tile_load<7>(values + kTileWords, 64);
        tile_products_bf16<1, 4, 7>();
        if (kTwo) {
            tile_load<5>(weights + kHalves * kTileWords, 64);
            tile_products_bf16<2, 5, 6>();
            tile_products_bf16<3, 5, 7>();
        }
        if (half != kHalves - 1) return;
        tile_store<0>(sums, 64), tile_store<1>(sums + kTileFloats, 64);
        if (kTwo) tile_store<2>(below, 64), tile_store<3>(below + kTileFloats, 64);
    }

    // --- softmax --------------------------------------------------------------------------------------------------

    // Scales of the span's keys and values. Those of slots that nobody sees are 0, or anything.
    void take_scales(int begin) {
        if (scales_at_begin == begin) return;
        scales_at_begin = begin;
        const int last = begin + kSpanKeys < end ? begin + kSpanKeys : end;
        for (int key = begin > first ? begin : first, n; key < last; key += n) {
            const int place = key % kv.block_size, left = kv.block_size - place;
            n = left < last - key ? left : last - key;
            const float* from = scales_at(kv, block(key / kv.block_size)) + place;
            const auto size = sizeof(float) * static_cast<std::size_t>(n);
            std::memcpy(room.scales + (key - begin), from, size);
            std::memcpy(room.scales + kSpanKeys + (key - begin), from + kv.block_size, size);
        }
    }

    // A row's scores: scaled, capped, and of keys that it does not see minus infinity.
    void prepare(float* s, int begin, int first_key, int end_key) const {
        const vi lane = lane_numbers();
        const float twice = 2.0f * kLog2E * args.scale / args.soft_cap;
        for (int column = 0; column < kSpanKeys; column += W) {
            vf x = load(s + column);
            if constexpr (kScaled<T>) x = x * load(room.scales + column);
            if (args.soft_cap > 0.0f) x = capped_scores(x, twice, args.soft_cap * kLog2E);
            const vi key = lane + (begin + column);
            store(s + column, select((key >= first_key) & (key < end_key), x, splat(kNothing)));
        }
    }

    // Maxima, bases and factors of a piece's rows [row, row + num_rows), of one tile.
    void find_bases(const Piece& piece, int row, int num_rows) {
        float* s = room.scores[piece.place] + (row - piece.row) * kSpanKeys;
        const int low = position_of(row), high = position_of(row + num_rows - 1);
        const bool sees_all = piece.begin >= first_seen(high) && piece.begin + kSpanKeys <= end_seen(low);
        const bool as_they_are = sees_all && !kScaled<T> && !(args.soft_cap > 0.0f);
        for (int r = 0; r < num_rows; ++r, s += kSpanKeys) {
            if (!as_they_are) prepare(s, piece.begin, first_seen(position_of(row + r)), end_seen(position_of(row + r)));
            vf largest = load(s);
            for (int column = W; column < kSpanKeys; column += W) largest = max(largest, load(s + column));
            store(room.peaks + r * W, largest);
        }
        const vf before = load(room.largest + row);
        const vf now = max(max_of_rows(room.peaks) * factor, before);
        store(room.largest + row, now);
        store(room.bases, select(now == splat(kNothing), splat(0.0f), -now));  // 2^(minus infinity) is 0 either way
        store(room.factors[piece.place] + (row - piece.row), select(before == now, splat(1.0f), exp2(before - now)));
    }

    // Scores to weights, for the rows that `find_bases` was called for: [from, to) of them.
    void weigh_rows(const Piece& piece, int row, int from, int to) {
        const float* s = room.scores[piece.place] + (row - piece.row) * kSpanKeys;
        std::uint16_t* weights = room.weights[piece.place] + (row - piece.row) * kSpanKeys;
        const float* factors = room.factors[piece.place] + (row - piece.row);
        const vf scale = splat(factor);
        for (int r = from; r < to; ++r) {
            const vf base = splat(room.bases[r]);
            vf total = splat(0.0f);
            for (int column = 0; column < kSpanKeys; column += 2 * W) {
                vf low = rough_exp2(fma(load(s + r * kSpanKeys + column), scale, base));
                vf high = rough_exp2(fma(load(s + r * kSpanKeys + column + W), scale, base));
                total = total + (low + high);
                if constexpr (kScaled<T>) low = scaled(low, column), high = scaled(high, column + W);
                store_rounded(weights + column / kTileInputs * kTileWords + r * kTileInputs, low, high);
            }
            float* totals = room.totals + (row + r) * W;
            store(totals, fma(load(totals), splat(factors[r]), total));
        }
    }

    // What is not seen has no weight, and a scale that may be NaN.
    vf scaled(vf weight, int column) const {
        return select(weight != splat(0.0f), weight * load(room.scales + kSpanKeys + column), splat(0.0f));
    }

    // The sums of a piece's rows to their new maxima.
    void rescale(const Piece& piece) {
        for (int row = piece.row; row <= last_row(piece); ++row) {
            const float by = room.factors[piece.place][row - piece.row];
            if (by == 1.0f) continue;
            float* sums = room.sums + row / kTileRows * depth * 2 * kTileFloats + row % kTileRows * 16;
            for (int d = 0; d < 2 * depth; ++d, sums += kTileFloats) store(sums, load(sums) * by);
        }
    }

    // One piece's softmax, while the products go on.
    void soften(const Piece& piece) {
        if constexpr (kScaled<T>) take_scales(piece.begin);
        const int rows = last_row(piece) + 1 - piece.row, parts = (rows + 3) / 4;
        for (int tile = 0, part = 0; tile < rows; tile += kTileRows) {
            const int num_rows = rows - tile < kTileRows ? rows - tile : kTileRows;
            find_bases(piece, piece.row + tile, num_rows);
            for (int r = 0; r < num_rows; r += 4) {
                multiply_on(++part, parts);
                weigh_rows(piece, piece.row + tile, r, r + 4 < num_rows ? r + 4 : num_rows);
            }
        }
        multiply_on(1, 1);
    }

    // --- the walk -------------------------------------------------------------------------------------------------

    // The piece after this one of which some row sees something; begin < 0: none.
    Piece after(Piece piece) const {
        do {
            piece.row += kBandRows;
            if (piece.row >= count) piece.row = 0, piece.begin += kSpanKeys;
            if (piece.begin >= end) return {-1, 0, 0};
        } while (!is_seen(piece));
        piece.place ^= 1;
        return piece;
    }

    bool is_seen(const Piece& piece) const {
        return piece.begin < end_seen(position_of(last_row(piece))) &&
               piece.begin + kSpanKeys > first_seen(position_of(piece.row));
    }

    void clear() {
        const auto rows = static_cast<std::size_t>(round_up(count, kBandRows));
        const auto dims = static_cast<std::size_t>(depth) * kTileInputs;
        for (std::size_t row = 0; row < rows; ++row) room.largest[row] = kNothing;
        std::memset(room.totals, 0, sizeof(float) * rows * W);
        std::memset(room.sums, 0, sizeof(float) * rows * dims);
        std::memset(room.ends, 0, sizeof(std::uint16_t) * 2 * kTileInputs);
        std::memset(room.zeros, 0, sizeof(std::uint16_t) * dims);
        std::memset(room.peaks, 0, sizeof(float) * 16 * W);
        if (copies_keys()) std::memset(room.keys, 0, sizeof(std::uint32_t) * dims / 2 * kKeyColumns);
    }

    void run() {
        if (args.soft_cap > 0.0f) factor = 1.0f;  // `capped_scores` has it
        key_stride = (copies_keys() ? kKeyColumns : kv.block_size) * 4;
        first = first_seen(args.first_position);
        end = end_seen(args.first_position + args.num_queries - 1);
        clear();
        pack_queries();
        configure(count < kTileRows ? count : kTileRows, count > kTileRows ? kTileRows : 0, 64);
        Piece before{-1, 0, 0}, piece = after({first / kSpanKeys * kSpanKeys, -kBandRows, 1});
        if (piece.begin >= 0) bring_keys(piece.begin);
        begin_products(piece, before);
        multiply_on(1, 1);
        while (piece.begin >= 0) {
            const Piece next = after(piece);
            if (next.begin >= 0 && next.begin != piece.begin) bring_keys(next.begin);
            prepare_values(before);
            begin_products(next, before);
            soften(piece);
            before = piece, piece = next;
        }
        prepare_values(before);
        begin_products(piece, before);
        multiply_on(1, 1);
        release();
        finish_state();
    }

    void prepare_values(const Piece& piece) {
        if (piece.begin < 0) return;
        bring_values(piece.begin);
        rescale(piece);
    }

    // Totals and sums as `merge` and `finish` have them: a row's dimensions in order.
    void finish_state() {
        for (int row = 0; row < count; ++row) {
            states.largest[row] = room.largest[row];
            states.total[row] = sum(load(room.totals + row * W));
            const float* sums = room.sums + row / kTileRows * depth * 2 * kTileFloats + row % kTileRows * 16;
            float* to = states.values + std::int64_t{row} * states.width;
            for (int d = 0; d < states.width; d += 4) {
                // `interleave` took quarters of 8 from 32; codes are in order.
                const int at = kScaled<T> ? d / 16 * kTileFloats + d % 16
                                          : (d / 32 * 2 + d / 4 % 2) * kTileFloats + d % 32 / 8 * 4;
                std::memcpy(to + d, sums + at, 4 * sizeof(float));
            }
            for (int d = 0; d < states.width; d += W) store(to + d, load(to + d) + 0.0f);
        }
    }
};

template <class T>
OCTAVO_INLINE void attend_tiles_as(const KVView& kv, const AttendArgs& args) {
    const int count = args.num_queries * args.group;
    TileAttention<T> attention{kv, args, tile_room(args.scratch, count, kv.head_dim),
                               states_at(args.state, count, kv.head_dim)};
    attention.run();
}

void attend_tiles(const KVView& kv, const AttendArgs& args) {
    if (kv.dtype == Dtype::bfloat16)
        attend_tiles_as<std::uint16_t>(kv, args);
    else if (kv.dtype == Dtype::int8)
        attend_tiles_as<std::int8_t>(kv, args);
    else
        attend_as<float>(kv, args);
}

std::int64_t attend_tiles_scratch(int count, int head_dim, int block_size) {
    const std::int64_t tiles = tile_room(nullptr, count, head_dim).num_floats;
    const std::int64_t plain = attend_scratch(count, head_dim, block_size);
    return tiles > plain ? tiles : plain;
}

}  // namespace
