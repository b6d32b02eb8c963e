// Rows of an input rounded to 8 bits, each by a scale of its own: what int8_product.hpp multiplies.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "vectors.hpp"

constexpr int64_t ROWS_TOGETHER = 8;     // of a thread's turn
constexpr float SMALLEST_ROW = 1e-30f;  // largest value of a row: rows of zeros are divided by it

// body(set, i) for every row, ROWS_TOGETHER of them a turn; on one thread where there are few numbers.
template <class Body>
void over_rows(int64_t rows, int64_t width, int threads, const Body& body) {
    const int64_t turns = (rows + ROWS_TOGETHER - 1) / ROWS_TOGETHER;
    share_out(turns, rows * width < FEW_NUMBERS ? 1 : threads, [=](auto set, int64_t turn) INLINE_BODY {
        const int64_t last = std::min(rows, (turn + 1) * ROWS_TOGETHER);
        for (int64_t i = turn * ROWS_TOGETHER; i < last; i++) body(set, i);
    });
}

// The largest absolute value of a row, or SMALLEST_ROW; NaN where one of them is NaN or infinite.
template <class V>
INLINE float size_of(const float* x, int64_t width) {
    V most{}, poison{};  // a comparison forgets NaN, a sum does not
    int64_t c = 0;
    for (; c + LANES<V> <= width; c += LANES<V>) {
        const V value = load<V>(x + c), size = value < 0.f ? -value : value;
        most = size > most ? size : most;
        poison += value * 0.f;
    }
    float size = SMALLEST_ROW, wrong = 0.f;
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

// levels[c] = zero + round(x[c] * inverse), ties to even; |x[c] * inverse| <= 127. Added to so large a number, whose last
// bit is worth one, a float is rounded and stands in the lowest bits.
INLINE void round_row(const float* x, uint8_t* levels, int64_t width, float inverse, uint32_t zero) {
    constexpr float LARGE = 1.5f * (1 << 23);
    for (int64_t c = 0; c < width; c++) {
        const float shifted = x[c] * inverse + LARGE;
        uint32_t bits;
        std::memcpy(&bits, &shifted, sizeof bits);
        levels[c] = static_cast<uint8_t>(bits + zero);
    }
}

// units[i] = size_of(x[i]) / steps; levels[i] = steps + 1 + round(x[i] / units[i]), and steps + 1, which stands for zero,
// from width up to `padded`. x: [rows, width]; levels: [rows, padded].
inline void quantise_rows(const float* x, uint8_t* levels, float* units, int64_t rows, int64_t width, int64_t padded,
                          int steps, int threads) {
    over_rows(rows, width, threads, [=](auto set, int64_t i) INLINE_BODY {
        const float* row = x + i * width;
        const float size = size_of<typename decltype(set)::Widest>(row, width);
        units[i] = size / static_cast<float>(steps);
        round_row(row, levels + i * padded, width, static_cast<float>(steps) / size, steps + 1);
        std::fill(levels + i * padded + width, levels + (i + 1) * padded, static_cast<uint8_t>(steps + 1));
    });
}
