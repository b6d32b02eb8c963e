// Flat positions of a matrix to compressed sparse rows (CSR), or to those of its transpose.
#pragma once

#include <algorithm>
#include <cstdint>

constexpr int64_t TILE = 64;  // rows of dW whose sums are kept at once: with 32 tokens a quarter of the first cache

// positions [count] increasing, in [0, rows * width). starts [rows + 1], columns and out_values [count].
template <class P, class C>
void compress(const P* positions, const float* values, int64_t count, int64_t rows, int64_t width, int32_t* starts,
              C* columns, float* out_values) {
    int64_t row = -1, row_start = -width;
    for (int64_t k = 0; k < count; k++) {
        while (positions[k] >= row_start + width) {
            starts[++row] = static_cast<int32_t>(k);
            row_start += width;
        }
        columns[k] = static_cast<C>(positions[k] - row_start);
        out_values[k] = values[k];
    }
    while (row < rows) starts[++row] = static_cast<int32_t>(count);
}

// The same for the transpose: starts [width + 1], columns are the matrix's rows. A counting sort, stable.
template <class P, class C>
void compress_transposed(const P* positions, const float* values, int64_t count, int64_t width, int32_t* starts,
                         C* columns, float* out_values) {
    for (int64_t c = 0; c <= width; c++) starts[c] = 0;
    for (int64_t k = 0; k < count; k++) starts[positions[k] % width]++;
    int32_t before = 0;
    for (int64_t c = 0; c <= width; c++) {  // counts to places: where the next entry of a row goes
        const int32_t here = starts[c];
        starts[c] = before;
        before += here;
    }
    for (int64_t k = 0; k < count; k++) {
        const int32_t place = starts[positions[k] % width]++;
        columns[place] = static_cast<C>(positions[k] / width);
        out_values[place] = values[k];
    }
    for (int64_t c = width; c > 0; c--) starts[c] = starts[c - 1];  // each place has moved to the next row's start
    starts[0] = 0;
}

// order [rows]: the rows of every tile, counted from its first, by falling number of entries. The end of a loop over a
// row's entries is mispredicted whenever the row before had another number of them; in this order that happens once for
// each number. A counting sort; rows of many entries go into one bin, since beside their sums a misprediction costs little.
inline void order_rows(const int32_t* starts, int64_t rows, uint8_t* order) {
    constexpr int MANY = 31;
    const auto kind = [&](int64_t r) { return MANY - std::min(MANY, starts[r + 1] - starts[r]); };
    for (int64_t first = 0; first < rows; first += TILE) {
        const int64_t last = std::min(rows, first + TILE);
        uint8_t places[MANY + 2] = {};
        for (int64_t r = first; r < last; r++) places[kind(r) + 1]++;
        for (int k = 0; k < MANY; k++) places[k + 1] += places[k];
        for (int64_t r = first; r < last; r++) order[first + places[kind(r)]++] = static_cast<uint8_t>(r - first);
    }
}
