// Flat positions of a matrix to compressed rows, or to those of its transpose.
#pragma once

#include <cstdint>

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

// The same of the transpose: starts [width + 1], columns are the matrix's rows. A counting sort, stable.
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
