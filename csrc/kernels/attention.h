// Attention of a run of queries of one row over one segment of its keys, with a running softmax.
//
// Keys are walked in tiles of whole blocks that begin at fixed absolute positions, in order. For one query, the numbers
// and their order depend on its position, the tiles and the segment alone: a tile in which it sees nothing changes
// nothing (its maximum stays, 2^0 is exactly 1, and zeros are added). What no query of the run sees is never read into
// a sum. Scores are taken to base 2: times log2(e), and 2^x for e^x, which takes fewer operations. (Running softmax:
// Milakov and Gimelshein, arXiv:1805.02867; over blocks: Dao et al., arXiv:2205.14135)
#pragma once

#include <type_traits>

#include "kernels/kernels.h"
#include "kernels/rope_kv.h"
#include "simd/tile.h"

namespace {

constexpr int kTileKeys = 64;  // keys that share a rescaling, if blocks are not larger
constexpr int kBlocksAhead = 2;
constexpr int kRunRows = 48;  // queries times heads of a group that share what is read of the cache
constexpr float kNothing = -__builtin_inff();
constexpr float kLog2E = 1.44269504088896341f;

constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }

// The part of one state's values: padded to whole vectors. Beside them a state has its maximum and its sum.
struct States {
    float* largest;  // [queries]
    float* total;  // [queries]
    float* values;  // [queries, width]
    int count, width;
};

OCTAVO_INLINE States states_at(float* state, int count, int head_dim) {
    return {state, state + count, state + 2 * count, count, round_up(head_dim, W)};
}

// Queries times scale and log2(e), packed for the tiles: blocks of kMaxRows, values of one dimension side by side.
OCTAVO_INLINE void pack_queries(const AttendArgs& args, int head_dim, float* packed) {
    const int count = args.num_queries * args.group;
    const float scale = args.scale * kLog2E;
    for (int first = 0; first < count; first += kMaxRows) {
        const int rows = count - first < kMaxRows ? count - first : kMaxRows;
        for (int m = 0; m < rows; ++m) {
            const int query = (first + m) / args.group, head = args.kv_head * args.group + (first + m) % args.group;
            const float* q = args.q + query * args.q_stride + std::int64_t{head} * head_dim;
            float* to = packed + std::int64_t{first} * head_dim + m;
            for (int d = 0; d < head_dim; ++d) to[d * rows] = q[d] * scale;
        }
    }
}

// One tile: blocks [first_block, first_block + num_blocks) of the row, `columns` scores of each query side by side
// (a block's keys are padded to whole vectors).
struct KeyTile {
    int first_block, num_blocks, block_columns, columns;
};

// How keys and values of an element type lie.
template <class T>
struct LayoutOf;
template <>
struct LayoutOf<float> {
    using Keys = Singles;
    using Values = Singles;
};
template <>
struct LayoutOf<std::uint16_t> {
    using Keys = Pairs;
    using Values = Halves;
};
template <>
struct LayoutOf<std::int8_t> {
    using Keys = Quarters;
    using Values = Quarters;
};

// soft_cap * tanh(score / soft_cap), to base 2: tanh(y) = 1 - 2 / (e^2y + 1), and e^2y = 2^(x * twice).
OCTAVO_INLINE vf capped_scores(vf x, float twice, float soft_cap) {
    return (1.0f - 2.0f / (exp2(x * twice) + 1.0f)) * soft_cap;
}

template <class T>
struct Attention {
    using KeyB = typename LayoutOf<T>::Keys;
    using ValueB = typename LayoutOf<T>::Values;
    static constexpr bool kNarrow = sizeof(T) < sizeof(float);

    const KVView& kv;
    const AttendArgs& args;
    float* packed;  // queries [count, head_dim]
    float* scores;  // [count, columns]
    float* wide;  // one block's keys or values in float32
    float* scales;  // kScaled: of a tile's keys, then of its values, each as the scores lie
    States states;
    int last_block = 0;

    int count() const { return args.num_queries * args.group; }

    T* block(int index) const {
        return keys_at<T>(kv, args.blocks[index], args.kv_head);
    }

    // The first position that the query at `position` sees.
    int first_seen(int position) const {
        return args.window > 0 && position >= args.window ? position - args.window + 1 : 0;
    }

    const T* values_of(int index) const { return values_at(kv, block(index)); }

    // What will be read two blocks after the keys, or the values, of a tile's block `index`: first come all keys, then
    // all values. Blocks lie anywhere, so the processor cannot guess where.
    const T* after_keys(const KeyTile& tile, int index) const {
        const int later = index + kBlocksAhead;
        if (later < tile.num_blocks) return block(tile.first_block + later);
        const int values = later - tile.num_blocks;
        return values_of(tile.first_block + (values < tile.num_blocks ? values : 0));
    }

    const T* after_values(const KeyTile& tile, int index) const {
        const int later = tile.first_block + index + kBlocksAhead;
        if (index + kBlocksAhead < tile.num_blocks) return values_of(later);
        return block(later < last_block ? later : tile.first_block);
    }

    // Where many queries share a block, narrow numbers are widened once for all of them.
    bool widens() const { return kNarrow && count() >= 4 * kMaxRows; }

    template <class B>
    void score_block(const typename B::Element* keys, int stride, const KeyTile& tile, int index) {
        const T* next = after_keys(tile, index);
        for (int row = 0; row < count(); row += kMaxRows) {
            const int rows = count() - row < kMaxRows ? count() - row : kMaxRows;
            Tile<Packed, B> t;
            t.a = packed + std::int64_t{row} * kv.head_dim;
            t.a_row = 0;
            t.b = keys;
            t.next = reinterpret_cast<const typename B::Element*>(next);
            t.b_stride = stride;
            t.c = scores + std::int64_t{row} * tile.columns + index * tile.block_columns;
            t.c_row = tile.columns;
            t.steps = kv.head_dim / B::kInner;
            t.continues = false;
            run_tiles(rows, tile.block_columns / W, t);
        }
    }

    // One block's keys to `wide`, `columns` of each dimension side by side.
    void widen_keys(const typename KeyB::Element* keys, int columns) {
        for (int step = 0; step < kv.head_dim / KeyB::kInner; ++step)
            for (int column = 0; column < columns; column += W) {
                const auto* from = keys + step * kv.block_size + column;
                float* to = wide + step * KeyB::kInner * columns + column;
                if constexpr (KeyB::kInner == 2) {
                    const vu words = load_as<vu>(from);
                    store(to, lower(words));
                    store(to + columns, upper(words));
                } else {
                    store(to, load(from));
                }
            }
    }

    void score(const KeyTile& tile) {
        const int columns = tile.block_columns;
        for (int index = 0; index < tile.num_blocks; ++index) {
            const auto* keys = reinterpret_cast<const typename KeyB::Element*>(block(tile.first_block + index));
            if constexpr (kNarrow) {
                if (widens()) {
                    widen_keys(keys, columns);
                    score_block<Singles>(wide, columns, tile, index);
                    continue;
                }
            }
            score_block<KeyB>(keys, kv.block_size, tile, index);
        }
    }

    // Scales of a tile's keys and values. Those of slots that nobody wrote come along, and may be anything.
    void take_scales(const KeyTile& tile) {
        const int size = kv.block_size;
        for (int index = 0; index < tile.num_blocks; ++index) {
            const float* from = scales_at(kv, block(tile.first_block + index));
            float* to = scales + index * tile.block_columns;
            for (int place = 0; place < size; place += W) {
                store(to + place, load(from + place));
                store(to + tile.columns + place, load(from + size + place));
            }
            const int later = tile.first_block + index + tile.num_blocks;  // of the next tile
            if (later >= last_block) continue;
            const char* next = reinterpret_cast<const char*>(scales_at(kv, block(later)));
            for (int line = 0; line < 8 * size; line += 64) __builtin_prefetch(next + line, 0, 3);
        }
    }

    // Scores to weights, in place, for the query at `position`; its values so far are scaled to the new maximum.
    void soften(const KeyTile& tile, int row, int position) {
        float* s = scores + std::int64_t{row} * tile.columns;
        const int first = first_seen(position) > args.first_key ? first_seen(position) : args.first_key;
        const int end = position + 1 < args.end_key ? position + 1 : args.end_key;
        const int begin_key = tile.first_block * kv.block_size, num_keys = tile.num_blocks * kv.block_size;
        if constexpr (kScaled<T>)
            for (int column = 0; column < tile.columns; column += W)
                store(s + column, load(s + column) * load(scales + column));
        const bool sees_all = begin_key >= first && begin_key + num_keys <= end && tile.block_columns == kv.block_size;
        if (!sees_all || args.soft_cap > 0.0f) cap_and_mask(tile, s, first, end);
        vf largest = splat(kNothing);
        for (int column = 0; column < tile.columns; column += W) largest = max(load(s + column), largest);
        const float before = states.largest[row], tile_largest = max_lane(largest);
        const float now = before > tile_largest ? before : tile_largest;
        vf total = splat(0.0f);
        const vf base = splat(now == kNothing ? 0.0f : now);  // 2^(minus infinity) is 0 either way
        for (int column = 0; column < tile.columns; column += W) {
            const vf weight = exp2(load(s + column) - base);
            total = total + weight;
            if constexpr (kScaled<T>) {
                // What is not seen has no weight, and a scale that may be NaN.
                const vf scaled = weight * load(scales + tile.columns + column);
                store(s + column, select(weight != splat(0.0f), scaled, splat(0.0f)));
            } else {
                store(s + column, weight);
            }
        }
        const float factor = before == now ? 1.0f : exp2(splat(before - now))[0];
        states.largest[row] = now;
        states.total[row] = fma1(states.total[row], factor, sum(total));
        if (factor != 1.0f) {
            float* values = states.values + std::int64_t{row} * states.width;
            for (int d = 0; d < states.width; d += W) store(values + d, load(values + d) * factor);
        }
    }

    // Scores of keys outside of [first, end), and of places that are no keys, to minus infinity.
    void cap_and_mask(const KeyTile& tile, float* s, int first, int end) const {
        for (int index = 0; index < tile.num_blocks; ++index)
            for (int place = 0; place < tile.block_columns; place += W) {
                float* at = s + index * tile.block_columns + place;
                const int key = (tile.first_block + index) * kv.block_size + place;
                const vi lane = lane_numbers();
                const vi seen = (lane + key >= first) & (lane + key < end) & (lane + place < kv.block_size);
                const vf x = args.soft_cap > 0.0f ? capped(load(at)) : load(at);
                store(at, select(seen, x, splat(kNothing)));
            }
    }

    vf capped(vf x) const { return capped_scores(x, 2.0f / args.soft_cap, args.soft_cap * kLog2E); }

    // Weights times values, for the keys [first, end) that some query of the run sees.
    void gather(const KeyTile& tile, int first, int end) {
        for (int index = 0; index < tile.num_blocks; ++index) {
            const int key = (tile.first_block + index) * kv.block_size;
            const int low = first > key ? first - key : 0;
            const int high = end - key < kv.block_size ? end - key : kv.block_size;
            if (low >= high) continue;
            const T* values = values_of(tile.first_block + index) + std::int64_t{low} * kv.head_dim;
            const int weights = index * tile.block_columns + low;
            if constexpr (kNarrow) {
                if (widens()) {
                    for (int i = 0; i < high - low; ++i)
                        for (int d = 0; d < states.width; d += W)
                            store(wide + i * states.width + d, load(values + std::int64_t{i} * kv.head_dim + d));
                    gather_block<Singles>(wide, states.width, high - low, tile, weights, wide);
                    continue;
                }
            }
            gather_block<ValueB>(values, kv.head_dim, high - low, tile, weights, after_values(tile, index));
        }
    }

    template <class B>
    void gather_block(const typename B::Element* values, int stride, int num_keys, const KeyTile& tile, int weights,
                      const typename B::Element* next) {
        for (int row = 0; row < count(); row += kMaxRows) {
            const int rows = count() - row < kMaxRows ? count() - row : kMaxRows;
            Tile<Rows, B> t;
            t.a = scores + std::int64_t{row} * tile.columns + weights;
            t.a_row = tile.columns;
            t.b = values;
            t.next = next;
            t.b_stride = stride;
            t.c = states.values + std::int64_t{row} * states.width;
            t.c_row = states.width;
            t.steps = num_keys;
            t.continues = true;
            run_tiles(rows, states.width / W, t);
        }
    }

    void run() {
        for (int i = 0; i < count(); ++i) states.largest[i] = kNothing, states.total[i] = 0.0f;
        std::memset(states.values, 0, sizeof(float) * static_cast<std::size_t>(count()) * states.width);
        pack_queries(args, kv.head_dim, packed);
        const int last_position = args.first_position + args.num_queries - 1;
        const int seen = first_seen(args.first_position);
        const int first = seen > args.first_key ? seen : args.first_key;
        const int end = last_position + 1 < args.end_key ? last_position + 1 : args.end_key;
        const int block_columns = round_up(kv.block_size, W);
        const int tile_blocks = block_columns >= kTileKeys ? 1 : kTileKeys / block_columns;
        last_block = (end + kv.block_size - 1) / kv.block_size;
        // Tiles begin at multiples of tile_blocks, whatever is seen of the first.
        int begin = first / kv.block_size / tile_blocks * tile_blocks;
        for (; begin < last_block; begin += tile_blocks) {
            const int from = begin > first / kv.block_size ? begin : first / kv.block_size;
            const int to = begin + tile_blocks < last_block ? begin + tile_blocks : last_block;
            const KeyTile tile{from, to - from, block_columns, (to - from) * block_columns};
            if constexpr (kScaled<T>) take_scales(tile);
            score(tile);
            for (int row = 0; row < count(); ++row) soften(tile, row, args.first_position + row / args.group);
            gather(tile, first, end);
        }
    }
};

// Floats that `attend` needs beside the state, for `count` queries.
OCTAVO_INLINE std::int64_t score_columns(int block_size) {
    const int block_columns = round_up(block_size, W);
    return block_columns >= kTileKeys ? block_columns : kTileKeys / block_columns * block_columns;
}

OCTAVO_INLINE std::int64_t wide_floats(int head_dim, int block_size) {
    return std::int64_t{round_up(block_size, W)} * round_up(head_dim, W);
}

template <class T>
OCTAVO_INLINE void attend_as(const KVView& kv, const AttendArgs& args) {
    const int count = args.num_queries * args.group;
    float* scores = args.scratch + std::int64_t{count} * kv.head_dim;
    float* wide = scores + count * score_columns(kv.block_size);
    float* scales = wide + wide_floats(kv.head_dim, kv.block_size);
    Attention<T> attention{kv, args, args.scratch, scores, wide, scales, states_at(args.state, count, kv.head_dim)};
    attention.run();
}

void attend(const KVView& kv, const AttendArgs& args) {
    if (kv.dtype == Dtype::bfloat16)
        attend_as<std::uint16_t>(kv, args);
    else if (kv.dtype == Dtype::int8)
        attend_as<std::int8_t>(kv, args);
    else
        attend_as<float>(kv, args);
}

// Takes the states of a later segment into those of the earlier ones.
void merge(float* state, const float* later, int count, int head_dim) {
    const States into = states_at(state, count, head_dim), from = states_at(const_cast<float*>(later), count, head_dim);
    for (int i = 0; i < count; ++i) {
        const float a = into.largest[i], b = from.largest[i], now = a > b ? a : b;
        const float keep = a == now ? 1.0f : exp2(splat(a - now))[0], take = b == now ? 1.0f : exp2(splat(b - now))[0];
        into.largest[i] = now;
        into.total[i] = fma1(from.total[i], take, into.total[i] * keep);
        float* values = into.values + std::int64_t{i} * into.width;
        const float* more = from.values + std::int64_t{i} * from.width;
        for (int d = 0; d < into.width; d += W)
            store(values + d, fma(load(more + d), splat(take), load(values + d) * keep));
    }
}

// Values over sums, to `out`: query t's heads of this KV head at out + t * stride.
void finish(const float* state, int num_queries, int group, int head_dim, float* out, std::int64_t stride) {
    const int count = num_queries * group;
    const States states = states_at(const_cast<float*>(state), count, head_dim);
    for (int i = 0; i < count; ++i) {
        float* to = out + i / group * stride + std::int64_t{i % group} * head_dim;
        const float* values = states.values + std::int64_t{i} * states.width;
        // A zero's sign could tell how the run was cut: what a query does not see adds +0.
        for (int d = 0; d < head_dim; ++d) to[d] = values[d] / states.total[i] + 0.0f;
    }
}

std::int64_t attend_scratch(int count, int head_dim, int block_size) {
    const std::int64_t columns = score_columns(block_size);
    return count * (head_dim + columns) + wide_floats(head_dim, block_size) + 2 * columns;
}

std::int64_t state_floats(int count, int head_dim) { return std::int64_t{count} * (2 + round_up(head_dim, W)); }

}  // namespace
