// y[rows] += x[rows] dW' + db, a dW and a db for each task of a batch.
//
// Tokens of one task go in blocks of 8, 16 or 32. A block is turned feature-major once ("packed"), so that an entry of
// dW is one multiply-add over whole vectors: no gathers, no atomics, sums in registers. A few tokens are not worth it.
#pragma once

#include <omp.h>

#include <algorithm>

#include "numbers.hpp"

// One source, several instruction sets: the loader picks the best that the machine has. NEON is part of every arm64.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define BEST_OF_MACHINE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define BEST_OF_MACHINE
#endif
#define INLINE inline __attribute__((always_inline))  // so that it is compiled for the instruction set of its caller

typedef float V8 __attribute__((vector_size(32)));
typedef float V16 __attribute__((vector_size(64)));
typedef float Unaligned8 __attribute__((vector_size(32), aligned(4)));

constexpr int FEW = 4;       // tokens of a block below which it is not packed
constexpr int WIDEST = 32;   // tokens of the largest block
constexpr int64_t TILE = 64; // rows of dW whose sums are kept at once: with WIDEST tokens a quarter of the first cache

struct Matrix {  // a row of the table: addresses, 0 where a task changes nothing
    int64_t starts, columns, values, bias, order;
};

struct Scale {  // likewise, of float32 vectors
    int64_t weight, unused[2], bias, order;
};

struct Block {  // `count` tokens from `token` on, all of one task; `packed`: where they lie in the packed memory, in tokens
    int64_t task, token, count, packed;
};

INLINE int width_of(int64_t count) { return count <= 8 ? 8 : count <= 16 ? 16 : 32; }

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int Lanes8 __attribute__((vector_size(32)));
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Lanes8){__VA_ARGS__})
#endif

INLINE void transpose8(V8* r) {
    V8 a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = SHUFFLE(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        a[i + 1] = SHUFFLE(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4) {
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = SHUFFLE(a[i + j], a[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            b[i + 2 * j + 1] = SHUFFLE(a[i + j], a[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    }
    for (int i = 0; i < 4; i++) {
        r[i] = SHUFFLE(b[i], b[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        r[i + 4] = SHUFFLE(b[i], b[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

INLINE V8 load8(const float* from) { return *reinterpret_cast<const Unaligned8*>(from); }
INLINE void add8(float* to, V8 change) {
    Unaligned8* place = reinterpret_cast<Unaligned8*>(to);
    *place = *place + change;
}
INLINE V8 load8(const BFloat16* from) {
    V8 result;
    for (int i = 0; i < 8; i++) result[i] = to_float(from[i]);
    return result;
}
INLINE void add8(BFloat16* to, V8 change) {
    for (int i = 0; i < 8; i++) round_to(to_float(to[i]) + change[i], to[i]);
}

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
INLINE void packed_block(const Matrix& m, const float* packed, T* y, int64_t out, int64_t count, int64_t from,
                         int64_t to) {
    constexpr int W = sizeof(V) / sizeof(float) * N;
    alignas(64) float tile[TILE * W];
    for (int64_t first = from; first < to; first += TILE) {
        const int64_t last = std::min(to, first + TILE);
        sum_rows<V, N, C>(m, packed, first, last, tile);
        add_tile<W>(y, out, count, first, last, tile);
    }
}

// The same without packing: for few tokens.
template <class C, class T>
INLINE void plain_block(const Matrix& m, const T* x, T* y, int64_t in, int64_t out, int64_t count, int64_t from,
                        int64_t to) {
    const int32_t* starts = at<const int32_t>(m.starts);
    const C* columns = at<const C>(m.columns);
    const float *values = at<const float>(m.values), *bias = at<const float>(m.bias);
    for (int64_t q = 0; q < count; q++)
        for (int64_t r = from; r < to; r++) {
            float sum = bias ? bias[r] : 0.f;
            for (int32_t k = starts ? starts[r] : 0, end = starts ? starts[r + 1] : 0; k < end; k++)
                sum += values[k] * to_float(x[q * in + columns[k]]);
            round_to(to_float(y[q * out + r]) + sum, y[q * out + r]);
        }
}

template <class T>
BEST_OF_MACHINE void pack(const T* x, int64_t in, const Block* blocks, int64_t count, float* packed, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < count; i++) {
        const Block& b = blocks[i];
        if (b.count < FEW) continue;
        const T* from = x + b.token * in;
        float* to = packed + b.packed * in;
        switch (width_of(b.count)) {
            case 8: pack_block<8>(from, in, b.count, to); break;
            case 16: pack_block<16>(from, in, b.count, to); break;
            default: pack_block<32>(from, in, b.count, to);
        }
    }
}

// Blocks times parts of dW's rows, in any order: each writes its own part of y.
template <class T, class C>
BEST_OF_MACHINE void sparse_linear(const T* x, const float* packed, T* y, int64_t in, int64_t out, const Block* blocks,
                                   int64_t count, const Matrix* matrices, int threads) {
    const int64_t tiles = (out + TILE - 1) / TILE;
    const int64_t parts = count >= 2 * threads ? 1 : std::min<int64_t>(tiles, 2 * threads);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < count * parts; i++) {
        const Block& b = blocks[i / parts];
        const Matrix& m = matrices[b.task];
        if (!m.starts && !m.bias) continue;
        const int64_t from = tiles * (i % parts) / parts * TILE;
        const int64_t to = std::min(out, tiles * (i % parts + 1) / parts * TILE);
        const float* block = packed + b.packed * in;
        T* place = y + b.token * out;
        if (b.count < FEW) {
            plain_block<C>(m, x + b.token * in, place, in, out, b.count, from, to);
            continue;
        }
        switch (width_of(b.count)) {
            case 8: packed_block<V8, 1, C>(m, block, place, out, b.count, from, to); break;
            case 16: packed_block<V16, 1, C>(m, block, place, out, b.count, from, to); break;
            default: packed_block<V16, 2, C>(m, block, place, out, b.count, from, to);
        }
    }
}

// y[i] += dW[ids[i]]: the changed entries of the rows that were looked up.
template <class T, class C>
void sparse_lookup(const int64_t* ids, T* y, int64_t width, const Block* blocks, int64_t count, const Matrix* matrices,
                   int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
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

// y[i] = y[i] * w_t + b_t; w_t is there for every task of the batch.
template <class T>
BEST_OF_MACHINE void scale_shift(T* y, int64_t width, const Block* blocks, int64_t count, const Scale* scales,
                                 int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < count; i++) {
        const Block& b = blocks[i];
        const float *weight = at<const float>(scales[b.task].weight), *bias = at<const float>(scales[b.task].bias);
        for (T* row = y + b.token * width; row < y + (b.token + b.count) * width; row += width)
            for (int64_t c = 0; c < width; c++)
                round_to(to_float(row[c]) * weight[c] + (bias ? bias[c] : 0.f), row[c]);
    }
}
