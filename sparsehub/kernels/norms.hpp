// LayerNorm and RMSNorm of a mixed batch: each token with its own task's scale and shift, alone or after the norm itself.
#pragma once

#include <cmath>

#include "vectors.hpp"

// y[i] = y[i] * w_t + b_t; w_t is there for every task of the batch.
template <class T>
BEST_OF_MACHINE void scale_shift(T* y, int64_t width, const Block* blocks, int64_t count, const Scale* scales,
                                 int threads) {
#pragma omp parallel for schedule(static) num_threads(threads_for(blocks, count, width, threads))
    for (int64_t i = 0; i < count; i++) {
        const Block& b = blocks[i];
        const float *weight = at<const float>(scales[b.task].weight), *bias = at<const float>(scales[b.task].bias);
        for (T* row = y + b.token * width; row < y + (b.token + b.count) * width; row += width)
            for (int64_t c = 0; c < width; c++)
                round_to(to_float(row[c]) * weight[c] + (bias ? bias[c] : 0.f), row[c]);
    }
}

// The sum of f(c) over all c < width: f8 gives eight of them at once, f1 one.
template <class F8, class F1>
INLINE float sum_of(int64_t width, F8 f8, F1 f1) {
    V8 sums[2] = {};  // two, so that one addition does not wait for the other
    int64_t c = 0;
    for (; c + 16 <= width; c += 16) {
        sums[0] += f8(c);
        sums[1] += f8(c + 8);
    }
    float total = 0.f;
    for (int i = 0; i < 8; i++) total += sums[0][i] + sums[1][i];
    for (; c < width; c++) total += f1(c);
    return total;
}

// y [width] = (x - mean) / sqrt(variance + epsilon) * weight + bias; an RMS norm takes the mean for zero.
template <bool CENTERED, class T>
INLINE void norm_row(const T* x, T* y, int64_t width, const float* weight, const float* bias, float epsilon) {
    float mean = 0.f;
    if constexpr (CENTERED)
        mean = sum_of(
            width, [&](int64_t c) { return load8(x + c); }, [&](int64_t c) { return to_float(x[c]); }) / width;
    const float squares = sum_of(
        width,
        [&](int64_t c) {
            const V8 part = load8(x + c) - mean;
            return part * part;
        },
        [&](int64_t c) { return (to_float(x[c]) - mean) * (to_float(x[c]) - mean); });
    const float scale = 1.f / std::sqrt(squares / width + epsilon);
    int64_t c = 0;
    for (; c + 8 <= width; c += 8)
        store8(y + c, (load8(x + c) - mean) * scale * load8(weight + c) + (bias ? load8(bias + c) : V8{}));
    for (; c < width; c++) round_to((to_float(x[c]) - mean) * scale * weight[c] + (bias ? bias[c] : 0.f), y[c]);
}

// y[i] = norm(x[i]) * w_t + b_t; w_t is there for every task of the batch.
template <bool CENTERED, class T>
BEST_OF_MACHINE void norm(const T* x, T* y, int64_t width, const Block* blocks, int64_t count,
                          const Scale* scales, float epsilon, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads_for(blocks, count, width, threads))
    for (int64_t i = 0; i < count; i++) {
        const Block& b = blocks[i];
        const float *weight = at<const float>(scales[b.task].weight), *bias = at<const float>(scales[b.task].bias);
        for (int64_t token = b.token; token < b.token + b.count; token++)
            norm_row<CENTERED>(x + token * width, y + token * width, width, weight, bias, epsilon);
    }
}
