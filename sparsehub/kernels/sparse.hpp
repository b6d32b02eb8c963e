// y += x dW' + db, with a dW and a db for each task of a batch; or y = b + x dW' + db, to which the caller then adds the
// product x W: that way y is written once, not written with b, read and written again; or, where tokens are made of fewer
// ones whose products with W are there, y[i] = product[rows[i]] + x[rows[i]] dW' + db.
//
// Tokens of one task are taken in blocks of 8, 16 or 32. A block is transposed to feature-major order ("packed") right
// before it is used, into memory that stays in the thread's cache, so that an entry of dW is one multiply-add over whole
// vectors: no gathers, no atomics, sums in registers. Blocks of a few tokens are not packed. Maps that share their input
// (query, key and value) use a packed block one after the other.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "compress.hpp"
#include "vectors.hpp"

constexpr int64_t FEW = 4;        // tokens of a block below which it is not packed
constexpr int64_t NARROWEST = 8;  // tokens of the smallest packed block
constexpr int64_t WIDEST = 32;    // tokens of the largest
constexpr int64_t SHORT = 24;     // mean entries of a tile's rows up to which the rows are summed together

enum Start { ITSELF, BIAS, ROWS };  // what a change is added to: what y is, b, or a row of a product

struct Map {  // one of the maps that share x: its y [tokens, out]; b [out] of BIAS (or 0), or [rows, out] of ROWS; the changes
    int64_t out, b, y, matrices;
};

struct Part {  // some of a map's rows, whole tiles of them: what one thread computes
    int64_t index, parts;

    INLINE std::pair<int64_t, int64_t> of(int64_t out) const {
        const int64_t tiles = (out + TILE - 1) / TILE;
        return {tiles * index / parts * TILE, std::min(out, tiles * (index + 1) / parts * TILE)};
    }
};

// Which row of some matrix each token of a block has: its own, or of ROWS that which it is made of.
template <int64_t W, Start START, class T>
struct BlockRows {
    const T* row[W];

    INLINE BlockRows(const T* matrix, int64_t width, const Block& block, const int64_t* rows) {
        for (int64_t q = 0; q < block.count; q++) {
            const int64_t token = block.token + q;
            row[q] = matrix + (START == ROWS ? rows[token] : token) * width;
        }
    }
};

// x, a pointer to [in] for each of count tokens, to packed [in, W]; tokens beyond count are zeros. All tokens of a few
// columns before the next columns: so each line of `packed` is written whole, and is not fetched again for other tokens.
template <int64_t W, class V, class T>
INLINE void pack_block(const T* const* x, int64_t in, int64_t count, float* packed) {
    constexpr int64_t S = LANES<V>;
    int64_t c = 0;
    for (; c + S <= in; c += S)
        for (int64_t q = 0; q < W; q += S) {
            V r[S];
            for (int64_t u = 0; u < S; u++) r[u] = q + u < count ? load<V>(x[q + u] + c) : V{};
            transpose(r);
            for (int64_t u = 0; u < S; u++) *reinterpret_cast<V*>(packed + (c + u) * W + q) = r[u];
        }
    for (; c < in; c++)
        for (int64_t q = 0; q < W; q++) packed[c * W + q] = q < count ? to_float(x[q][c]) : 0.f;
}

// tile [rows, W]: the products of rows first to last of dW with a packed block, plus b where there is one.
template <class V, int64_t W, class C, class T>
INLINE void sum_rows(const Matrix& m, const T* b, const float* packed, int64_t first, int64_t last, float* tile) {
    constexpr int64_t N = W / LANES<V>;
    const int32_t* starts = at<const int32_t>(m.starts);
    const C* columns = at<const C>(m.columns);
    const float *values = at<const float>(m.values), *bias = at<const float>(m.bias);
    const uint8_t* order = m.order ? at<const uint8_t>(m.order) + first : nullptr;
    for (int64_t i = 0; i < last - first; i++) {
        const int64_t place = order ? order[i] : i, r = first + place;
        V sums[N];
        for (int64_t j = 0; j < N; j++) sums[j] = V{} + ((b ? to_float(b[r]) : 0.f) + (bias ? bias[r] : 0.f));
        for (int32_t k = starts ? starts[r] : 0, end = starts ? starts[r + 1] : 0; k < end; k++) {
            const V* x = reinterpret_cast<const V*>(packed + static_cast<int64_t>(columns[k]) * W);
            for (int64_t j = 0; j < N; j++) sums[j] += values[k] * x[j];
        }
        for (int64_t j = 0; j < N; j++) reinterpret_cast<V*>(tile + place * W)[j] = sums[j];
    }
}

// y [count, out] = tile' for rows first to last, added to what a change is added to: where `starts` points for each token;
// the tile of BIAS has it already.
template <class V, int64_t W, Start START, class T>
INLINE void add_tile(T* y, const T* const* starts, int64_t out, int64_t count, int64_t first, int64_t last,
                     const float* tile) {
    constexpr int64_t S = LANES<V>;
    const int64_t whole = first + (last - first) / S * S;
    for (int64_t q = 0; q < count; q += S) {  // a token's rows one after the other: they lie in one cache line of y
        const int64_t tokens = std::min(S, count - q);
        for (int64_t r = first; r < whole; r += S) {
            V part[S];
            for (int64_t u = 0; u < S; u++) part[u] = *reinterpret_cast<const V*>(tile + (r - first + u) * W + q);
            transpose(part);
            for (int64_t u = 0; u < tokens; u++) {
                store(y + (q + u) * out + r, START == BIAS ? part[u] : load<V>(starts[q + u] + r) + part[u]);
            }
        }
    }
    for (int64_t r = whole; r < last; r++)
        for (int64_t q = 0; q < count; q++) {
            const float start = START == BIAS ? 0.f : to_float(starts[q][r]);
            round_to(start + tile[(r - first) * W + q], y[q * out + r]);
        }
}

// y [out] += the products of rows first to last of dW with one token. Rows have few entries, of different numbers: a loop
// that ends with the row is mispredicted at every row, which costs more than the sums. So all products are summed up in one
// go, in two halves side by side because an addition waits for the one before it, and a row's sum is the difference of two
// running sums. In double precision they lose nothing that a float would hold.
template <class C, class T>
INLINE void short_rows(const int32_t* starts, const C* columns, const float* values, const float* bias, const T* row,
                       T* y, int64_t first, int64_t last) {
    const int64_t middle = first + (last - first) / 2;
    const int32_t begin = starts[first], half = starts[middle], end = starts[last];
    double sums[SHORT * TILE + 2], *low = sums, *high = sums + (half - begin) + 1;
    const auto product = [&](int32_t k) { return static_cast<double>(values[k] * to_float(row[columns[k]])); };
    const int32_t together = std::min(half - begin, end - half);
    double a = low[0] = 0, b = high[0] = 0;
    for (int32_t k = 0; k < together; k++) {
        low[k + 1] = a += product(begin + k);
        high[k + 1] = b += product(half + k);
    }
    for (int32_t k = together; k < half - begin; k++) low[k + 1] = a += product(begin + k);
    for (int32_t k = together; k < end - half; k++) high[k + 1] = b += product(half + k);
    const auto finish = [&](int64_t from, int64_t to, const double* until) {
        for (int64_t r = from; r < to; r++) {
            const double change = until[starts[r + 1] - starts[from]] - until[starts[r] - starts[from]];
            round_to(to_float(y[r]) + static_cast<float>(change + (bias ? bias[r] : 0.f)), y[r]);
        }
    };
    finish(first, middle, low);
    finish(middle, last, high);
}

// The same for rows of many entries.
template <class C, class T>
INLINE void long_rows(const int32_t* starts, const C* columns, const float* values, const float* bias, const T* row,
                      T* y, int64_t first, int64_t last) {
    for (int64_t r = first; r < last; r++) {
        float sums[4] = {bias ? bias[r] : 0.f};
        int32_t k = starts[r];
        for (; k + 4 <= starts[r + 1]; k += 4)
            for (int j = 0; j < 4; j++) sums[j] += values[k + j] * to_float(row[columns[k + j]]);
        for (; k < starts[r + 1]; k++) sums[0] += values[k] * to_float(row[columns[k]]);
        round_to(to_float(y[r]) + (sums[0] + sums[1]) + (sums[2] + sums[3]), y[r]);
    }
}

// y [count, out] += x dW' + bias, for rows from to to, without packing: for few tokens.
template <class C, class T>
INLINE void plain_rows(const Matrix& m, const T* const* x, T* y, int64_t out, int64_t count, int64_t from, int64_t to) {
    const int32_t* starts = at<const int32_t>(m.starts);
    const C* columns = at<const C>(m.columns);
    const float *values = at<const float>(m.values), *bias = at<const float>(m.bias);
    for (int64_t q = 0; q < count; q++, y += out) {
        if (!starts) {
            for (int64_t r = from; r < to; r++) round_to(to_float(y[r]) + bias[r], y[r]);
            continue;
        }
        for (int64_t first = from; first < to; first += TILE) {
            const int64_t last = std::min(to, first + TILE);
            if (starts[last] - starts[first] <= SHORT * TILE)
                short_rows<C>(starts, columns, values, bias, x[q], y, first, last);
            else
                long_rows<C>(starts, columns, values, bias, x[q], y, first, last);
        }
    }
}

struct alignas(64) Line {
    float floats[16];
};

// A thread's own memory for a packed block, kept from one call to the next.
inline float* scratch(int64_t floats) {
    static thread_local std::vector<Line> lines;
    const size_t wanted = static_cast<size_t>((floats + 15) / 16);
    if (lines.size() < wanted) lines.resize(wanted);
    return lines.data()->floats;
}

// y [count, out] = b, for rows from to to.
template <class T>
INLINE void fill(const T* b, T* y, int64_t out, int64_t count, int64_t from, int64_t to) {
    for (int64_t q = 0; q < count; q++, y += out) {
        if (b)
            std::copy(b + from, b + to, y + from);
        else
            std::fill(y + from, y + to, T{});
    }
}

// y [count, out] = a row of the product for each token, for rows from to to.
template <class T>
INLINE void copy_rows(const T* const* starts, T* y, int64_t out, int64_t count, int64_t from, int64_t to) {
    for (int64_t q = 0; q < count; q++, y += out) std::copy(starts[q] + from, starts[q] + to, y + from);
}

// All maps for one block of at most W tokens; of each, a part of its rows.
template <class Set, int64_t W, class C, Start START, class T>
INLINE void packed_block(const T* x, int64_t in, const Map* maps, int64_t count, const Block& block, Part part,
                         const int64_t* rows) {
    typedef std::conditional_t<(W < LANES<typename Set::Widest>), V8, typename Set::Widest> V;
    float* packed = nullptr;
    alignas(64) float tile[TILE * W];
    for (const Map* map = maps; map < maps + count; map++) {
        const Matrix& m = at<const Matrix>(map->matrices)[block.task];
        T* y = at<T>(map->y) + block.token * map->out;
        const T* b = START == BIAS ? at<const T>(map->b) : nullptr;
        const BlockRows<W, START, T> starts(at<const T>(START == ROWS ? map->b : map->y), map->out, block, rows);
        const auto [from, to] = part.of(map->out);
        if (!m.starts && !m.bias) {
            if (START == BIAS) fill(b, y, map->out, block.count, from, to);
            if (START == ROWS) copy_rows(starts.row, y, map->out, block.count, from, to);
            continue;
        }
        if (m.starts && !packed)
            pack_block<W, typename Set::Square>(BlockRows<W, START, T>(x, in, block, rows).row, in, block.count,
                                                packed = scratch(in * W));
        for (int64_t first = from; first < to; first += TILE) {
            const int64_t last = std::min(to, first + TILE);
            sum_rows<V, W, C>(m, b, packed, first, last, tile);
            add_tile<typename Set::Square, W, START>(y, starts.row, map->out, block.count, first, last, tile);
        }
    }
}

template <class C, Start START, class T>
INLINE void small_block(const T* x, int64_t in, const Map* maps, int64_t count, const Block& block, Part part,
                        const int64_t* rows) {
    const BlockRows<FEW, START, T> tokens(x, in, block, rows);
    for (const Map* map = maps; map < maps + count; map++) {
        const Matrix& m = at<const Matrix>(map->matrices)[block.task];
        T* y = at<T>(map->y) + block.token * map->out;
        const auto [from, to] = part.of(map->out);
        if (START == BIAS) fill(at<const T>(map->b), y, map->out, block.count, from, to);
        if (START == ROWS) {
            const BlockRows<FEW, START, T> starts(at<const T>(map->b), map->out, block, rows);
            copy_rows(starts.row, y, map->out, block.count, from, to);
        }
        if (m.starts || m.bias) plain_rows<C>(m, tokens.row, y, map->out, block.count, from, to);
    }
}

// The tokens that are packed together: as many as half of the second cache holds, since x, y and dW pass through it too.
// The first cache does not matter: with its own tokens in it, each entry of dW serves fewer of them, which costs more.
inline int64_t tokens_together(int64_t in) {
    int64_t tokens = WIDEST;
    while (tokens > NARROWEST && in * tokens * static_cast<int64_t>(sizeof(float)) > chosen.second_cache / 2) tokens /= 2;
    return tokens;
}

// Blocks times parts of the maps' rows, in any order: each writes its own part of every y. rows: of ROWS, by token.
template <class T, class C, Start START>
void sparse_linear(const T* x, int64_t in, const Map* maps, int64_t map_count, const Block* blocks, int64_t count,
                   int threads, const int64_t* rows = nullptr) {
    const int parts = count >= 2 * threads ? 1 : threads;
    const int64_t together = tokens_together(in);
    share_out(count * parts, threads, [=](auto set, int64_t i) INLINE_BODY {
        typedef decltype(set) Set;
        const Part part = {i % parts, parts};
        Block block = blocks[i / parts];
        for (int64_t left = block.count; left > 0; left -= block.count, block.token += block.count) {
            block.count = std::min(left, together);
            if (block.count < FEW)
                small_block<C, START>(x, in, maps, map_count, block, part, rows);
            else if (block.count <= NARROWEST)
                packed_block<Set, NARROWEST, C, START>(x, in, maps, map_count, block, part, rows);
            else if (block.count <= WIDEST / 2)
                packed_block<Set, WIDEST / 2, C, START>(x, in, maps, map_count, block, part, rows);
            else
                packed_block<Set, WIDEST, C, START>(x, in, maps, map_count, block, part, rows);
        }
    });
}

// y[i] += dW[ids[i]]: the changed entries of the rows that were looked up.
template <class T, class C>
void sparse_lookup(const int64_t* ids, T* y, int64_t width, const Block* blocks, int64_t count, const Matrix* matrices,
                   int threads) {
#pragma omp parallel for schedule(static) num_threads(threads_for(blocks, count, width, threads))
    for (int64_t i = 0; i < count; i++) {
        const Matrix& m = matrices[blocks[i].task];
        if (!m.starts) continue;
        const int32_t* starts = at<const int32_t>(m.starts);
        const C* columns = at<const C>(m.columns);
        const float* values = at<const float>(m.values);
        for (int64_t q = blocks[i].token; q < blocks[i].token + blocks[i].count; q++)
            for (int32_t k = starts[ids[q]]; k < starts[ids[q] + 1]; k++) {
                T& place = y[q * width + columns[k]];
                round_to(to_float(place) + values[k], place);
            }
    }
}
