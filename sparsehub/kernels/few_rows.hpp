// The product of a Linear for few rows, straight from its weights: a library's product copies them into another order
// first, which pays where many rows use it.
#pragma once

#include <algorithm>
#include <cstring>

#include "vectors.hpp"

constexpr int64_t WHOLE_VECTORS = 16;  // x has a multiple of it as columns: the lanes of the widest vector

template <class V>
struct Half;
template <>
struct Half<V16> {
    typedef V8 Type;
};
template <>
struct Half<V8> {
    typedef V4 Type;
};

// Four sums, each of the lanes of a sum so far that is at most V16.
template <class V>
INLINE V4 folded(V value) {
    if constexpr (std::is_same_v<V, V4>) {
        return value;
    } else {
        typename Half<V>::Type low, high;
        std::memcpy(&low, &value, sizeof low);
        std::memcpy(&high, reinterpret_cast<const char*>(&value) + sizeof low, sizeof high);
        return folded(low + high);
    }
}

// ROWS: of x that are summed up at once with four of w, as many as there are registers for. FEW: rows of x up to which this
// was faster than a library's product, measured with MiniLM's maps.
template <class Set>
struct Sums {
    static constexpr int ROWS = 3, FEW = 2;
};
template <>
struct Sums<Avx2> {
    static constexpr int ROWS = 3, FEW = 16;
};
template <>
struct Sums<Avx512> {
    static constexpr int ROWS = 6, FEW = 32;
};

// y[r][o] (+)= x[r] . w[o] for R rows and four outputs. bias: of these outputs, or absent; y: [.., out].
template <class V, int R, bool ADD>
INLINE void few_tile(const float* x, const float* w, int64_t in, const float* bias, float* y, int64_t out) {
    V sums[4][R] = {};
    for (int64_t k = 0; k < in; k += LANES<V>) {
        V own[R];
        for (int r = 0; r < R; r++) own[r] = load<V>(x + r * in + k);
        for (int o = 0; o < 4; o++) {
            const V weight = load<V>(w + o * in + k);
            __builtin_prefetch(w + (o + 4) * in + k);  // of the next tile
            for (int r = 0; r < R; r++) sums[o][r] += weight * own[r];
        }
    }
    for (int r = 0; r < R; r++) {
        V4 four[4];
        for (int o = 0; o < 4; o++) four[o] = folded(sums[o][r]);
        transpose(four);
        V4 found = (four[0] + four[1]) + (four[2] + four[3]);
        if (bias) found += load<V4>(bias);
        if (ADD) found += load<V4>(y + r * out);
        store(y + r * out, found);
    }
}

template <class V, int R, bool ADD>
INLINE void few_tiles(const float* x, int64_t rows, const float* w, int64_t in, const float* bias, float* y,
                      int64_t out) {
    for (; rows >= R; rows -= R, x += R * in, y += R * out) few_tile<V, R, ADD>(x, w, in, bias, y, out);
    if constexpr (R > 1) few_tiles<V, (R > 4 ? 4 : R / 2), ADD>(x, rows, w, in, bias, y, out);
}

inline bool takes_few_rows(int64_t rows, int64_t in, int64_t out) {
    const int few = chosen.set == AVX512 ? Sums<Avx512>::FEW : chosen.set == AVX2 ? Sums<Avx2>::FEW : Sums<Plain>::FEW;
    return rows <= few && in % WHOLE_VECTORS == 0 && out % 4 == 0;
}

// y [rows, out] (+)= x [rows, in] w [out, in]^T + bias, of a shape that `takes_few_rows`. bias may be absent.
template <bool ADD>
void few_rows(const float* x, int64_t rows, const float* w, int64_t in, const float* bias, float* y, int64_t out,
              int threads) {
    share_out(out / 4, in * out < FEW_NUMBERS ? 1 : threads, [=](auto set, int64_t i) INLINE_BODY {
        typedef decltype(set) Set;
        few_tiles<typename Set::Widest, Sums<Set>::ROWS, ADD>(x, rows, w + 4 * i * in, in, bias ? bias + 4 * i : nullptr,
                                                             y + 4 * i, out);
    });
}
