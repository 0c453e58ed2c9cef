// Attention (attention.h) with its products on tile registers, over keys and values in bfloat16, or in int8, whose
// codes are numbers of bfloat16 as well. Queries and weights are rounded to bfloat16; sums are float32.
//
// Keys are walked in spans of kSpanKeys that begin at multiples of it; rows (a query's heads of the group, query by
// query) in bands of one tile. A band's scores of a span go to memory, become weights there, and those are multiplied
// with the span's values. The weights of a row or two are made after each product: of the scores of the band that comes
// next, and of the values of the one before. So both kinds of units work at once, and none waits for what was stored just
// now. (Four rows after four products took a third longer.)
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
    int keys_at_begin = -1, values_at_begin = -1, scales_at_begin = -1;  // the span whose keys, values, scales are there
    int next_at_begin = -1;  // the span whose values are those of `next_rows`
    const T* value_rows[kSpanKeys] = {};
    const T* next_rows[kSpanKeys] = {};

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
    bool copies_keys() const { return kScaled<T> || kv.block_size % 16 != 0 || kv.head_dim % kTileInputs != 0; }

    // --- what is multiplied ---------------------------------------------------------------------------------------

    // Queries, in tiles. The scale comes behind the product: what is rounded is the query as it is.
    void pack_queries() {
        const int dim = depth * kTileInputs, rows = round_up(count, kBandRows);
        const std::size_t size = sizeof(std::uint16_t) * static_cast<std::size_t>(rows) * static_cast<std::size_t>(dim);
        if (count != rows) std::memset(room.queries, 0, size);
        int row = 0;
        for (int query = 0; query < args.num_queries; ++query)
            for (int head = 0; head < args.group; ++head, ++row) {
                const float* q = args.q + query * args.q_stride + (args.kv_head * args.group + head) * kv.head_dim;
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
        if (keys_at_begin == begin) return;
        keys_at_begin = begin;
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
    template <int kHeadDim>
    void bring_values(int begin) {
        if (values_at_begin == begin) return;
        if (next_at_begin != begin) find_values(begin, next_rows);
        std::memcpy(value_rows, next_rows, sizeof value_rows);
        values_at_begin = begin;
        next_at_begin = begin + kSpanKeys < end ? begin + kSpanKeys : begin;
        find_values(next_at_begin, next_rows);
        pair_values<kHeadDim>();
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

    // The weights of a piece's rows, made one by one, between the products of other pieces.
    template <int kHeadDim>  // 0: any
    struct Weighing {
        const float *scores, *bases, *factors, *scales;
        std::uint16_t* weights;
        float* totals;
        vf scale;
        int left;
        int of_four;  // rows for each four products, so that they last as long

        // After the product number `kAt` of four.
        template <int kAt>
        OCTAVO_INLINE void after_product() {
            const int rows = kHeadDim > 0 ? rows_of_four(kHeadDim / kTileInputs) : of_four;
#pragma GCC unroll 2
            for (int i = kAt; i < rows; i += 4)
                if (left > 0) weigh();
        }

        OCTAVO_INLINE void weigh() {
            const vf base = splat(*bases++);
            vf total = splat(0.0f);
#pragma GCC unroll 4
            for (int tile = 0; tile < kWeightTiles; ++tile) {
                const float* s = scores + tile * kTileInputs;
                vf low = rough_exp2(fma(load(s), scale, base)), high = rough_exp2(fma(load(s + W), scale, base));
                total = total + (low + high);
                if constexpr (kScaled<T>) {
                    const float* by = scales + kSpanKeys + tile * kTileInputs;
                    low = scaled(low, load(by)), high = scaled(high, load(by + W));
                }
                store_rounded(weights + tile * kTileWords, low, high);
            }
            store(totals, fma(load(totals), splat(*factors++), total));
            scores += kSpanKeys, weights += kTileInputs, totals += W, --left;
        }

        // What is not seen has no weight, and a scale that may be NaN.
        static vf scaled(vf weight, vf by) { return select(weight != splat(0.0f), weight * by, splat(0.0f)); }
    };

    static constexpr int rows_of_four(int depth) { return (kBandRows + 2 * depth - 1) / (2 * depth); }

    template <int kHeadDim>
    int depth_of() const { return kHeadDim > 0 ? kHeadDim / kTileInputs : depth; }

    template <int kHeadDim>
    Weighing<kHeadDim> weighing(const Piece& piece) const {
        return {room.scores[piece.place],
                room.bases,
                room.factors[piece.place],
                room.scales,
                room.weights[piece.place],
                room.totals + piece.row * W,
                splat(factor),
                piece.begin < 0 ? 0 : last_row(piece) + 1 - piece.row,
                rows_of_four(depth)};
    }

    // Scores of a piece: of a tile of rows with four tiles of keys.
    template <int kHeadDim>
    OCTAVO_INLINE void multiply_keys(const Piece& piece, Weighing<kHeadDim>& rows) const {
        static_assert(kKeyTiles == 4, "a register of sums for each");
        const int depth = depth_of<kHeadDim>();
        const std::uint16_t* queries = room.queries + piece.row / kTileRows * depth * kTileWords;
        const auto key = [this](int i) { return reinterpret_cast<const char*>(key_tiles[i]); };
        const char *a = key(0), *b = key(1), *c = key(2), *d = key(3);
        const std::int64_t stride = key_stride, step = 16 * stride;
        tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
#pragma GCC unroll 2
        for (int dims = 0; dims < depth; ++dims, queries += kTileWords, a += step, b += step, c += step, d += step) {
            tile_load<4>(queries, 64);
            tile_load<5>(a, stride), tile_products_bf16<0, 4, 5>(), rows.template after_product<0>();
            tile_load<6>(b, stride), tile_products_bf16<1, 4, 6>(), rows.template after_product<1>();
            tile_load<7>(c, stride), tile_products_bf16<2, 4, 7>(), rows.template after_product<2>();
            tile_load<5>(d, stride), tile_products_bf16<3, 4, 5>(), rows.template after_product<3>();
        }
        float* to = room.scores[piece.place];
        tile_store<0>(to, kSpanKeys * 4), tile_store<1>(to + 16, kSpanKeys * 4);
        tile_store<2>(to + 32, kSpanKeys * 4), tile_store<3>(to + 48, kSpanKeys * 4);
    }

    // Weights of a piece times values, to its sums: of four tiles of dimensions at a time, or of two.
    template <int kHeadDim>
    OCTAVO_INLINE void multiply_values(const Piece& piece, Weighing<kHeadDim>& rows) const {
        const int depth = depth_of<kHeadDim>();
        float* sums = room.sums + piece.row / kTileRows * 2 * depth * kTileFloats;
        const std::uint16_t* values = room.values;
        int dims = 0;
        for (; dims + 4 <= 2 * depth; dims += 4, sums += 4 * kTileFloats, values += 4 * kTileWords)
            multiply_values<true>(room.weights[piece.place], values, sums, rows);
        if (dims < 2 * depth) multiply_values<false>(room.weights[piece.place], values, sums, rows);
    }

    template <bool kFour, int kHeadDim>
    OCTAVO_INLINE void multiply_values(const std::uint16_t* weights, const std::uint16_t* values, float* sums,
                                       Weighing<kHeadDim>& rows) const {
        const int depth = depth_of<kHeadDim>();
        const std::int64_t step = std::int64_t{2} * depth * kTileWords;
        tile_load<0>(sums, 64), tile_load<1>(sums + kTileFloats, 64);
        if (kFour) tile_load<2>(sums + 2 * kTileFloats, 64), tile_load<3>(sums + 3 * kTileFloats, 64);
#pragma GCC unroll 2
        for (int tile = 0; tile < kWeightTiles; ++tile, weights += kTileWords, values += step) {
            tile_load<4>(weights, 64);
            tile_load<5>(values, 64), tile_products_bf16<0, 4, 5>(), rows.template after_product<0>();
            tile_load<6>(values + kTileWords, 64), tile_products_bf16<1, 4, 6>(), rows.template after_product<1>();
            if (!kFour) continue;
            tile_load<7>(values + 2 * kTileWords, 64), tile_products_bf16<2, 4, 7>(), rows.template after_product<2>();
            tile_load<5>(values + 3 * kTileWords, 64), tile_products_bf16<3, 4, 5>(), rows.template after_product<3>();
        }
        tile_store<0>(sums, 64), tile_store<1>(sums + kTileFloats, 64);
        if (kFour) tile_store<2>(sums + 2 * kTileFloats, 64), tile_store<3>(sums + 3 * kTileFloats, 64);
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

    // Maxima, bases and factors of a piece's rows.
    void find_bases(const Piece& piece) {
        float* s = room.scores[piece.place];
        const int num_rows = last_row(piece) + 1 - piece.row;
        const int low = position_of(piece.row), high = position_of(last_row(piece));
        const bool sees_all = piece.begin >= first_seen(high) && piece.begin + kSpanKeys <= end_seen(low);
        if (!sees_all || kScaled<T> || args.soft_cap > 0.0f)
            for (int r = 0; r < num_rows; ++r) {
                const int position = position_of(piece.row + r);
                prepare(s + r * kSpanKeys, piece.begin, first_seen(position), end_seen(position));
            }
        for (int r = 0; r < num_rows; ++r, s += kSpanKeys)
            store(room.peaks + r * W, max(max(load(s), load(s + W)), max(load(s + 2 * W), load(s + 3 * W))));
        const vf before = load(room.largest + piece.row);
        const vf now = max(max_of_rows(room.peaks) * factor, before);
        store(room.largest + piece.row, now);
        store(room.bases, select(now == splat(kNothing), splat(0.0f), -now));  // 2^(minus infinity) is 0 either way
        store(room.factors[piece.place], select(before == now, splat(1.0f), exp2(before - now)));
    }

    // The sums of a piece's rows to their new maxima.
    void rescale(const Piece& piece) {
        const float* factors = room.factors[piece.place];
        if (are_ones(load(factors))) return;
        for (int row = piece.row; row <= last_row(piece); ++row) {
            const float by = factors[row - piece.row];
            if (by == 1.0f) continue;
            float* sums = room.sums + row / kTileRows * depth * 2 * kTileFloats + row % kTileRows * 16;
            for (int d = 0; d < 2 * depth; ++d, sums += kTileFloats) store(sums, load(sums) * by);
        }
    }

    // One piece's softmax; meanwhile the scores of the next one, and the values of the one before. begin < 0: none.
    template <int kHeadDim>
    void step(const Piece& before, const Piece& piece, const Piece& next) {
        if (before.begin >= 0) bring_values<kHeadDim>(before.begin), rescale(before);
        if (next.begin >= 0) bring_keys(next.begin);
        if (piece.begin >= 0) {
            if constexpr (kScaled<T>) take_scales(piece.begin);
            find_bases(piece);
        }
        Weighing<kHeadDim> rows = weighing<kHeadDim>(piece);
        if (next.begin >= 0) multiply_keys(next, rows);
        if (before.begin >= 0) multiply_values(before, rows);
        while (rows.left > 0) rows.weigh();
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
        if (kv.head_dim == 64)
            walk<64>();
        else if (kv.head_dim == 128)
            walk<128>();
        else
            walk<0>();
        release();
        finish_state();
    }

    template <int kHeadDim>
    void walk() {
        const Piece none{-1, 0, 0};
        Piece before = none, piece = none, next = after({first / kSpanKeys * kSpanKeys, -kBandRows, 1});
        while (next.begin >= 0 || piece.begin >= 0 || before.begin >= 0) {
            step<kHeadDim>(before, piece, next);
            before = piece, piece = next;
            if (next.begin >= 0) next = after(next);
        }
    }

    // Totals and sums as `merge` and `finish` have them: a row's dimensions in order.
    void finish_state() {
        for (int row = 0; row < count; ++row) {
            states.largest[row] = room.largest[row];
            states.total[row] = sum(load(room.totals + row * W));
            const float* sums = room.sums + row / kTileRows * depth * 2 * kTileFloats + row % kTileRows * 16;
            float* to = states.values + std::int64_t{row} * states.width;
            if constexpr (kScaled<T>) {
                for (int d = 0; d < states.width; d += W, sums += kTileFloats) store(to + d, load(sums) + 0.0f);
                continue;
            }
            int d = 0;
            for (; d + kTileInputs <= states.width; d += kTileInputs, sums += 2 * kTileFloats)
                restore_order(load(sums) + 0.0f, load(sums + kTileFloats) + 0.0f, to + d);
            if (d == states.width) continue;
            float rest[kTileInputs];
            restore_order(load(sums) + 0.0f, load(sums + kTileFloats) + 0.0f, rest);
            store(to + d, load(rest));
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
