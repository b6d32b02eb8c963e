// Before and after a product in 8 bits: rows of an input scaled to -1..1, and the product's rows scaled back.
#pragma once

#include <algorithm>
#include <cmath>

#include "vectors.hpp"

constexpr int64_t ROWS_TOGETHER = 8;  // of a thread's turn

// body(set, i) for every row, ROWS_TOGETHER of them a turn; on one thread where there are few numbers.
template <class Body>
void over_rows(int64_t rows, int64_t width, int threads, const Body& body) {
    const int64_t turns = (rows + ROWS_TOGETHER - 1) / ROWS_TOGETHER;
    share_out(turns, rows * width < FEW_NUMBERS ? 1 : threads, [=](auto set, int64_t turn) INLINE_BODY {
        const int64_t last = std::min(rows, (turn + 1) * ROWS_TOGETHER);
        for (int64_t i = turn * ROWS_TOGETHER; i < last; i++) body(set, i);
    });
}

// The largest absolute value of a row, or `smallest`; NaN where one of them is NaN or infinite.
template <class V>
INLINE float size_of(const float* x, int64_t width, float smallest) {
    V most{}, poison{};  // a comparison forgets NaN, a sum does not
    int64_t c = 0;
    for (; c + LANES<V> <= width; c += LANES<V>) {
        const V value = load<V>(x + c), size = value < 0.f ? -value : value;
        most = size > most ? size : most;
        poison += value * 0.f;
    }
    float size = smallest, wrong = 0.f;
    for (int64_t lane = 0; lane < LANES<V>; lane++) {
        size = std::max(size, static_cast<float>(most[lane]));
        wrong += poison[lane];
    }
    for (; c < width; c++) {
        size = std::max(size, std::abs(x[c]));
        wrong += x[c] * 0.f;
    }
    return size + wrong;
}

// sizes[i] = size_of(x[i]), scaled[i] = x[i] / sizes[i].
inline void scale_rows(const float* x, float* scaled, float* sizes, int64_t rows, int64_t width, float smallest,
                       int threads) {
    over_rows(rows, width, threads, [=](auto set, int64_t i) INLINE_BODY {
        const float* row = x + i * width;
        const float size = sizes[i] = size_of<typename decltype(set)::Widest>(row, width, smallest);
        for (int64_t c = 0; c < width; c++) scaled[i * width + c] = row[c] / size;
    });
}

// y[i] = y[i] * sizes[i] + b; b may be absent.
inline void unscale_rows(float* y, const float* sizes, const float* bias, int64_t rows, int64_t width, int threads) {
    over_rows(rows, width, threads, [=](auto, int64_t i) INLINE_BODY {
        float* row = y + i * width;
        for (int64_t c = 0; c < width; c++) row[c] = row[c] * sizes[i] + (bias ? bias[c] : 0.f);
    });
}
