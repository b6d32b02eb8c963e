// y[rows] += x[rows] dW' + db, a dW and a db for each task of a batch.
//
// Tokens of one task go in blocks of 8, 16 or 32. A block is turned feature-major ("packed") right before it is used,
// into memory that stays in the thread's own cache, so that an entry of dW is one multiply-add over whole vectors: no
// gathers, no atomics, sums in registers. A few tokens are not worth it. Maps that share their input pack it each for
// itself: kept packed for all of them it would leave the cache, and reading it again costs more than making it again.
#pragma once

#include <algorithm>
#include <vector>

#include "vectors.hpp"

constexpr int FEW = 4;       // tokens of a block below which it is not packed
constexpr int WIDEST = 32;   // tokens of the largest block
constexpr int64_t TILE = 64; // rows of dW whose sums are kept at once: with WIDEST tokens a quarter of the first cache

INLINE int width_of(int64_t count) { return count <= 8 ? 8 : count <= 16 ? 16 : 32; }

// x [count, in] to packed [in, W]; tokens beyond count are zeros.
template <int W, class T>
INLINE void pack_block(const T* x, int64_t in, int64_t count, float* packed) {
    for (int64_t q = 0; q < W; q += 8) {
        int64_t c = 0;
        for (; c + 8 <= in; c += 8) {
            V8 r[8];
            for (int64_t u = 0; u < 8; u++) r[u] = q + u < count ? load8(x + (q + u) * in + c) : V8{};
            transpose8(r);
            for (int64_t u = 0; u < 8; u++) *reinterpret_cast<V8*>(packed + (c + u) * W + q) = r[u];
        }
        for (; c < in; c++)
            for (int64_t u = 0; u < 8; u++) packed[c * W + q + u] = q + u < count ? to_float(x[(q + u) * in + c]) : 0.f;
    }
}

// tile [rows, W]: the sums of rows first to last of dW over a packed block.
template <class V, int N, class C>
INLINE void sum_rows(const Matrix& m, const float* packed, int64_t first, int64_t last, float* tile) {
    constexpr int W = sizeof(V) / sizeof(float) * N;
    const int32_t* starts = at<const int32_t>(m.starts);
    const C* columns = at<const C>(m.columns);
    const float *values = at<const float>(m.values), *bias = at<const float>(m.bias);
    for (int64_t r = first; r < last; r++) {
        V sums[N];
        for (int j = 0; j < N; j++) sums[j] = V{} + (bias ? bias[r] : 0.f);
        for (int32_t k = starts ? starts[r] : 0, end = starts ? starts[r + 1] : 0; k < end; k++) {
            const V* x = reinterpret_cast<const V*>(packed + static_cast<int64_t>(columns[k]) * W);
            for (int j = 0; j < N; j++) sums[j] += values[k] * x[j];
        }
        for (int j = 0; j < N; j++) reinterpret_cast<V*>(tile + (r - first) * W)[j] = sums[j];
    }
}

// y [count, out] += tile', for rows first to last.
template <int W, class T>
INLINE void add_tile(T* y, int64_t out, int64_t count, int64_t first, int64_t last, const float* tile) {
    const int64_t whole = first + (last - first) / 8 * 8;
    for (int64_t q = 0; q < count; q += 8) {  // a token's rows one after the other: they lie in one cache line of y
        const int64_t tokens = std::min<int64_t>(8, count - q);
        for (int64_t r = first; r < whole; r += 8) {
            V8 part[8];
            for (int64_t u = 0; u < 8; u++) part[u] = *reinterpret_cast<const V8*>(tile + (r - first + u) * W + q);
            transpose8(part);
            for (int64_t u = 0; u < tokens; u++) add8(y + (q + u) * out + r, part[u]);
        }
    }
    for (int64_t r = whole; r < last; r++)
        for (int64_t q = 0; q < count; q++) {
            T& place = y[q * out + r];
            round_to(to_float(place) + tile[(r - first) * W + q], place);
        }
}

template <class V, int N, class C, class T>
INLINE void packed_block(const Matrix& m, const T* x, float* packed, T* y, int64_t in, int64_t out, int64_t count,
                         int64_t from, int64_t to) {
    constexpr int W = sizeof(V) / sizeof(float) * N;
    if (m.starts) pack_block<W>(x, in, count, packed);
    alignas(64) float tile[TILE * W];
    for (int64_t first = from; first < to; first += TILE) {
        const int64_t last = std::min(to, first + TILE);
        sum_rows<V, N, C>(m, packed, first, last, tile);
        add_tile<W>(y, out, count, first, last, tile);
    }
}

// The first `count` of four values, zeros for the others.
INLINE V4 first_of(const float* values, int32_t count) {
    static constexpr int32_t keep[8] = {-1, -1, -1, -1, 0, 0, 0, 0};
    const I4 mask = *reinterpret_cast<const UnalignedI4*>(keep + 4 - std::min(count, 4));
    return (V4)((I4)*reinterpret_cast<const Unaligned4*>(values) & mask);
}

// The same without packing: for few tokens. Rows have few entries, and no two the same number: a loop that ends where
// the row does is mispredicted at every row, which costs more than the sums. So entries are taken four at a time, with
// zeros for what is too many; only at the matrix's own end, where there is nothing to read, one by one.
template <class C, class T>
INLINE void plain_block(const Matrix& m, const T* x, T* y, int64_t in, int64_t out, int64_t count, int64_t from,
                        int64_t to) {
    const int32_t* starts = at<const int32_t>(m.starts);
    const C* columns = at<const C>(m.columns);
    const float *values = at<const float>(m.values), *bias = at<const float>(m.bias);
    const int32_t whole = starts ? starts[out] - 4 : 0;
    for (int64_t q = 0; q < count; q++) {
        const T* row = x + q * in;
        for (int64_t r = from; r < to; r++) {
            int32_t k = starts ? starts[r] : 0;
            const int32_t end = starts ? starts[r + 1] : 0;
            V4 sums = {bias ? bias[r] : 0.f};
            if (starts && k <= whole) {
                do {
                    const C* c = columns + k;
                    const V4 seen = {to_float(row[c[0]]), to_float(row[c[1]]), to_float(row[c[2]]), to_float(row[c[3]])};
                    sums += first_of(values + k, end - k) * seen;
                    k += 4;
                } while (k < end && k <= whole);
            }
            for (; k < end; k++) sums[0] += values[k] * to_float(row[columns[k]]);
            T& place = y[q * out + r];
            round_to(to_float(place) + (sums[0] + sums[1]) + (sums[2] + sums[3]), place);
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

// Blocks times parts of dW's rows, in any order: each writes its own part of y.
template <class T, class C>
BEST_OF_MACHINE void sparse_linear(const T* x, T* y, int64_t in, int64_t out, const Block* blocks, int64_t count,
                                   const Matrix* matrices, int threads) {
    const int64_t tiles = (out + TILE - 1) / TILE;
    const int64_t parts = count >= 2 * threads ? 1 : std::min<int64_t>(tiles, threads);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < count * parts; i++) {
        const Block& b = blocks[i / parts];
        const Matrix& m = matrices[b.task];
        if (!m.starts && !m.bias) continue;
        const int64_t from = tiles * (i % parts) / parts * TILE;
        const int64_t to = std::min(out, tiles * (i % parts + 1) / parts * TILE);
        const T* tokens = x + b.token * in;
        T* place = y + b.token * out;
        if (b.count < FEW) {
            plain_block<C>(m, tokens, place, in, out, b.count, from, to);
            continue;
        }
        float* packed = scratch(in * WIDEST);
        switch (width_of(b.count)) {
            case 8: packed_block<V8, 1, C>(m, tokens, packed, place, in, out, b.count, from, to); break;
            case 16: packed_block<V16, 1, C>(m, tokens, packed, place, in, out, b.count, from, to); break;
            default: packed_block<V16, 2, C>(m, tokens, packed, place, in, out, b.count, from, to);
        }
    }
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
