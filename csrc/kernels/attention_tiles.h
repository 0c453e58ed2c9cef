// Attention (attention.h) with its products on tile registers, over keys and values in bfloat16, or in int8, whose
// codes are numbers of bfloat16 as well. Queries and weights are rounded to bfloat16; sums are float32.
//
// Keys are walked in spans of kSpanKeys that begin at multiples of it; rows (a query's heads of the group, query by
// query) in bands of one tile. A band's scores of a span go to memory, become weights there, and those are multiplied
// with the span's values. Between the weights of some rows stand products: of the scores of the band that comes next,
// and of the values of the one before, so that neither waits for what was stored just now.
//
// Every output of a tile is a sum of its own, and what a row does not see adds +0 to it, so a row's bits depend on no
// other row. (A zero's sign could: `finish_state` drops it.)
#pragma once

#include "kernels/attention_room.h"
#include "simd/vec.h"

namespace {

// 2^x for weights, which are rounded to bfloat16: relative error 9e-5 = 2^-13.5. Exactly 1 at 0; 0 below -126.
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

template <class T>
struct TileAttention {
    const KVView& kv;
    const AttendArgs& args;
    TileRoom room;
    States states;
    const int count = args.num_queries * args.group;
    const int depth = round_up(kv.head_dim, kTileInputs) / kTileInputs;  // tiles of 32 dimensions
    float factor = args.scale * kLog2E;  // of scores; positive

    int first = 0, end = 0;  // keys that some query of the run sees
    const std::uint16_t* key_tiles[kKeyTiles] = {};
    std::int64_t key_stride = 0;  // bytes
    const T* value_rows[kSpanKeys] = {};
    const T* next_rows[kSpanKeys] = {};
    int values_at_begin = -1, next_at_begin = -1, scales_at_begin = -1;  // the span whose values, or scales, are there

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
    // Of the span's keys those up to the last that the band sees, in whole tiles of weights: the others' weights are 0.
    int columns_of(const Piece& piece) const {
        const int seen = end_seen(position_of(last_row(piece))) - piece.begin;
        return seen < kSpanKeys ? round_up(seen, kTileInputs) : kSpanKeys;
    }
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
            for (int i = 0; i < kKeyTiles; ++i)
                key_tiles[i] = reinterpret_cast<const std::uint16_t*>(room.keys + i * 16);
            return;
        }
        for (int i = 0; i < kKeyTiles; ++i) {
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

    // The span's values as pairs of keys, in tiles; those of the span behind it are asked for.
    void bring_values(int begin) {
        if (values_at_begin == begin) return;
        if (next_at_begin != begin) find_values(begin, next_rows);
        std::memcpy(value_rows, next_rows, sizeof value_rows);
        values_at_begin = begin;
        next_at_begin = begin + kSpanKeys < end ? begin + kSpanKeys : begin;
        find_values(next_at_begin, next_rows);
        if (kv.head_dim == 64)
            pair_values<64>();
        else if (kv.head_dim == 128)
            pair_values<128>();
        else
            pair_values<0>();
    }

    template <int kHeadDim>  // 0: any
    void pair_values() const {
        const int head_dim = kHeadDim > 0 ? kHeadDim : kv.head_dim, tiles = kHeadDim > 0 ? kHeadDim / 16 : 2 * depth;
        for (int key = 0; key < kSpanKeys; key += 2) {
            std::uint16_t* to = room.values + key / kTileInputs * tiles * kTileWords + key % kTileInputs * 16;
            const T *x = value_rows[key], *y = value_rows[key + 1];
            const char *later = reinterpret_cast<const char*>(next_rows[key]),
                       *last = reinterpret_cast<const char*>(next_rows[key + 1]);
#pragma GCC unroll 4
            for (int line = 0; line < head_dim * static_cast<int>(sizeof(T)); line += 64)
                __builtin_prefetch(later + line, 0, 2), __builtin_prefetch(last + line, 0, 2);
            if constexpr (kScaled<T>) {
#pragma GCC unroll 8
                for (int d = 0; d < head_dim; d += W, to += kTileWords) {
                    const vu pairs = paired(load(x + d), load(y + d));
                    std::memcpy(to, &pairs, sizeof pairs);
                }
            } else {
                int d = 0;
#pragma GCC unroll 4
                for (; d + kTileInputs <= head_dim; d += kTileInputs, to += 2 * kTileWords)
                    interleave(x + d, y + d, to, to + kTileWords);
                if (d < head_dim) pair_ends(x + d, y + d, head_dim - d, to);
            }
        }
    }

    // The last dimensions of two values.
    void pair_ends(const T* x, const T* y, int num_dims, std::uint16_t* to) const {
        const auto size = sizeof(T) * static_cast<std::size_t>(num_dims);
        std::memcpy(room.ends, x, size);
        std::memcpy(room.ends + kTileInputs, y, size);
        interleave(room.ends, room.ends + kTileInputs, to, to + kTileWords);
    }

    // --- tiles ----------------------------------------------------------------------------------------------------

    // Products that are under way, step by step: of a tile of rows with four tiles of keys, or of values; their sums
    // are in the tile registers 0 to 3.
    Piece scored{}, gathered{};
    // Where a step is: in the scores (tile of keys, of dimensions), in the sums (tile of dimensions, of weights).
    int score_key = 0, score_dim = 0, num_key_tiles = 0, gather_dim = 0, gather_key = 0, num_weight_tiles = 0;

    void begin_products(const Piece& next, const Piece& before) {
        scored = next, gathered = before;
        score_key = score_dim = gather_dim = gather_key = 0;
        num_key_tiles = next.begin < 0 ? 0 : columns_of(next) / 16;
        num_weight_tiles = before.begin < 0 ? 0 : columns_of(before) / kTileInputs;
    }

    int num_steps() const { return (num_key_tiles + 3) / 4 * depth + (depth + 1) / 2 * num_weight_tiles; }

    bool multiply_on() {
        if (score_key < num_key_tiles) {
            add_scores();
            if (++score_dim == depth) score_dim = 0, score_key += 4;
            return true;
        }
        if (num_weight_tiles == 0 || gather_dim >= 2 * depth) return false;
        add_values();
        if (++gather_key == num_weight_tiles) gather_key = 0, gather_dim += 4;
        return true;
    }

    void multiply_all() {
        while (multiply_on()) {
        }
    }

    const void* key_tile(int i) const {
        return reinterpret_cast<const char*>(key_tiles[i]) + score_dim * 16 * key_stride;
    }

    void add_scores() {
        if (score_dim == 0) tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
        tile_load<4>(room.queries + (scored.row / kTileRows * depth + score_dim) * kTileWords, 64);
        tile_load<5>(key_tile(score_key), key_stride);
        tile_products_bf16<0, 4, 5>();
        tile_load<6>(key_tile(score_key + 1), key_stride);
        tile_products_bf16<1, 4, 6>();
        tile_load<7>(key_tile(score_key + 2), key_stride);
        tile_products_bf16<2, 4, 7>();
        tile_load<5>(key_tile(score_key + 3), key_stride);
        tile_products_bf16<3, 4, 5>();
        if (score_dim != depth - 1) return;
        float* to = room.scores[scored.place] + score_key * 16;
        tile_store<0>(to, kSpanKeys * 4), tile_store<1>(to + 16, kSpanKeys * 4);
        tile_store<2>(to + 32, kSpanKeys * 4), tile_store<3>(to + 48, kSpanKeys * 4);
    }

    void add_values() {
        float* sums = room.sums + (gathered.row / kTileRows * 2 * depth + gather_dim) * kTileFloats;
        float* more = sums + 2 * kTileFloats;
        const std::uint16_t* values = room.values + (gather_key * 2 * depth + gather_dim) * kTileWords;
        const bool has_four = gather_dim + 2 < 2 * depth;
        if (gather_key == 0) {
            tile_load<0>(sums, 64), tile_load<1>(sums + kTileFloats, 64);
            if (has_four) tile_load<2>(more, 64), tile_load<3>(more + kTileFloats, 64);
        }
        tile_load<4>(room.weights[gathered.place] + gather_key * kTileWords, 64);
        tile_load<5>(values, 64);
        tile_products_bf16<0, 4, 5>();
        tile_load<6>(values + kTileWords, 64);
        tile_products_bf16<1, 4, 6>();
        if (has_four) {
            tile_load<7>(values + 2 * kTileWords, 64);
            tile_products_bf16<2, 4, 7>();
            tile_load<5>(values + 3 * kTileWords, 64);
            tile_products_bf16<3, 4, 5>();
        }
        if (gather_key != num_weight_tiles - 1) return;
        tile_store<0>(sums, 64), tile_store<1>(sums + kTileFloats, 64);
        if (has_four) tile_store<2>(more, 64), tile_store<3>(more + kTileFloats, 64);
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
    void prepare(float* s, int begin, int columns, int first_key, int end_key) const {
        const vi lane = lane_numbers();
        const float twice = 2.0f * kLog2E * args.scale / args.soft_cap;
        for (int column = 0; column < columns; column += W) {
            vf x = load(s + column);
            if constexpr (kScaled<T>) x = x * load(room.scales + column);
            if (args.soft_cap > 0.0f) x = capped_scores(x, twice, args.soft_cap * kLog2E);
            const vi key = lane + (begin + column);
            store(s + column, select((key >= first_key) & (key < end_key), x, splat(kNothing)));
        }
    }

    // Maxima, bases and factors of a piece's rows.
    void find_bases(const Piece& piece) {
        float* s = room.scores[piece.place];
        const int columns = columns_of(piece), num_rows = last_row(piece) + 1 - piece.row;
        const int low = position_of(piece.row), high = position_of(last_row(piece));
        const bool sees_all = piece.begin >= first_seen(high) && piece.begin + columns <= end_seen(low);
        const bool as_they_are = sees_all && !kScaled<T> && !(args.soft_cap > 0.0f);
        for (int r = 0; r < num_rows; ++r, s += kSpanKeys) {
            const int position = position_of(piece.row + r);
            if (!as_they_are) prepare(s, piece.begin, columns, first_seen(position), end_seen(position));
            vf largest = max(load(s), load(s + W));
            for (int column = 2 * W; column < columns; column += 2 * W)
                largest = max(largest, max(load(s + column), load(s + column + W)));
            store(room.peaks + r * W, largest);
        }
        const vf before = load(room.largest + piece.row);
        const vf now = max(max_of_rows(room.peaks) * factor, before);
        store(room.largest + piece.row, now);
        store(room.bases, select(now == splat(kNothing), splat(0.0f), -now));  // 2^(minus infinity) is 0 either way
        store(room.factors[piece.place], select(before == now, splat(1.0f), exp2(before - now)));
    }

    // Scores to weights, of rows [from, to) of the piece.
    void weigh_rows(const Piece& piece, int from, int to) {
        const int columns = columns_of(piece);
        const vf scale = splat(factor);
        for (int r = from; r < to; ++r) {
            const float* s = room.scores[piece.place] + r * kSpanKeys;
            std::uint16_t* weights = room.weights[piece.place] + r * kTileInputs;
            const vf base = splat(room.bases[r]);
            vf total = splat(0.0f);
            for (int column = 0; column < columns; column += 2 * W, weights += kTileWords) {
                vf low = rough_exp2(fma(load(s + column), scale, base));
                vf high = rough_exp2(fma(load(s + column + W), scale, base));
                total = total + (low + high);
                if constexpr (kScaled<T>) low = scaled(low, column), high = scaled(high, column + W);
                store_rounded(weights, low, high);
            }
            float* totals = room.totals + (piece.row + r) * W;
            store(totals, fma(load(totals), splat(room.factors[piece.place][r]), total));
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
        const int rows = last_row(piece) + 1 - piece.row, steps = num_steps();
        const int between = steps > 0 ? (rows + steps - 1) / steps : rows;
        find_bases(piece);
        for (int r = 0; r < rows; r += between) {
            multiply_on();
            weigh_rows(piece, r, r + between < rows ? r + between : rows);
        }
        multiply_all();
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
        std::memset(room.scales, 0, sizeof(float) * (2 * kSpanKeys + W));
        if (copies_keys()) std::memset(room.keys, 0, sizeof(std::uint32_t) * dims / 2 * kKeyColumns);
    }

    void run() {
        if (args.soft_cap > 0.0f) factor = 1.0f;  // `capped_scores` has it
        key_stride = (copies_keys() ? kKeyColumns : kv.block_size) * 4;
        first = first_seen(args.first_position);
        end = end_seen(args.first_position + args.num_queries - 1);
        clear();
        pack_queries();
        const int rows = count < kTileRows ? count : kTileRows;
        configure_rows({rows, rows, rows, rows, rows, kTileRows, kTileRows, kTileRows});
        Piece before{-1, 0, 0}, piece = after({first / kSpanKeys * kSpanKeys, -kBandRows, 1});
        if (piece.begin >= 0) bring_keys(piece.begin);
        begin_products(piece, before);
        multiply_all();
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
        multiply_all();
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
