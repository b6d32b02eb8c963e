// LayerNorm and RMSNorm of a mixed batch: each token with its own task's scale and shift, alone or after the norm itself.
#pragma once

#include <cmath>

#include "vectors.hpp"

// y[i] = y[i] * w_t + b_t; w_t is there for every task of the batch.
template <class T>
void scale_shift(T* y, int64_t width, const Block* blocks, int64_t count, const Scale* scales, int threads) {
    share_out(count, threads_for(blocks, count, width, threads), [=](auto, int64_t i) INLINE_BODY {
        const Block& b = blocks[i];
        const float *weight = at<const float>(scales[b.task].weight), *bias = at<const float>(scales[b.task].bias);
        for (T* row = y + b.token * width; row < y + (b.token + b.count) * width; row += width)
            for (int64_t c = 0; c < width; c++)
                round_to(to_float(row[c]) * weight[c] + (bias ? bias[c] : 0.f), row[c]);
    });
}

// The sum of f(c) over all c < width: many gives a vector of them at once, one a single one. Sixteen sums side by side
// whatever the vector's width, so that every machine adds in one order.
template <class V, class Many, class One>
INLINE float sum_of(int64_t width, Many many, One one) {
    constexpr int64_t ALL = 16, S = LANES<V>;
    V sums[ALL / S] = {};
    int64_t c = 0;
    for (; c + ALL <= width; c += ALL)
        for (int64_t j = 0; j < ALL / S; j++) sums[j] += many(c + j * S);
    const auto lane = [&](int64_t i) INLINE_BODY { return sums[i / S][i % S]; };
    float total = 0.f;
    for (int64_t i = 0; i < ALL / 2; i++) total += lane(i) + lane(i + ALL / 2);
    for (; c < width; c++) total += one(c);
    return total;
}

// y [width] = (x - mean) / sqrt(variance + epsilon) * weight + bias; an RMS norm takes the mean for zero.
template <bool CENTERED, class V, class T>
INLINE void norm_row(const T* x, T* y, int64_t width, const float* weight, const float* bias, float epsilon) {
    float mean = 0.f;
    if constexpr (CENTERED)
        mean = sum_of<V>(
            width, [&](int64_t c) INLINE_BODY { return load<V>(x + c); },
            [&](int64_t c) INLINE_BODY { return to_float(x[c]); }) / width;
    const float squares = sum_of<V>(
        width,
        [&](int64_t c) INLINE_BODY {
            const V part = load<V>(x + c) - mean;
            return part * part;
        },
        [&](int64_t c) INLINE_BODY { return (to_float(x[c]) - mean) * (to_float(x[c]) - mean); });
    const float scale = 1.f / std::sqrt(squares / width + epsilon);
    int64_t c = 0;
    for (; c + LANES<V> <= width; c += LANES<V>)
        store(y + c, (load<V>(x + c) - mean) * scale * load<V>(weight + c) + (bias ? load<V>(bias + c) : V{}));
    for (; c < width; c++) round_to((to_float(x[c]) - mean) * scale * weight[c] + (bias ? bias[c] : 0.f), y[c]);
}

// y[i] = norm(x[i]) * w_t + b_t; w_t is there for every task of the batch.
template <bool CENTERED, class T>
void norm(const T* x, T* y, int64_t width, const Block* blocks, int64_t count, const Scale* scales, float epsilon,
          int threads) {
    share_out(count, threads_for(blocks, count, width, threads), [=](auto set, int64_t i) INLINE_BODY {
        typedef typename decltype(set)::Square V;
        const Block& b = blocks[i];
        const float *weight = at<const float>(scales[b.task].weight), *bias = at<const float>(scales[b.task].bias);
        for (int64_t token = b.token; token < b.token + b.count; token++)
            norm_row<CENTERED, V>(x + token * width, y + token * width, width, weight, bias, epsilon);
    });
}
