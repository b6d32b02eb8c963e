// Vectors of floats as the kernels load, transpose and store them, and the structs in which Python describes a batch.
#pragma once

#include <type_traits>

#include "cpu.hpp"
#include "numbers.hpp"

constexpr int64_t FEW_NUMBERS = 1 << 16;  // numbers below which one thread does all the work

struct Matrix {  // one task's SparseChange as a row of the table: addresses, 0 for what is absent
    int64_t starts, columns, values, bias, order;
};

struct Scale {  // one task's ScaleShift, likewise; float32 vectors
    int64_t weight, unused[2], bias, order;
};

struct Block {  // `count` tokens from `token` on, all of one task
    int64_t task, token, count;
};

// How many threads for blocks of rows of so many numbers: waking one up costs as much as some ten thousand of them.
inline int threads_for(const Block* blocks, int64_t count, int64_t width, int threads) {
    int64_t tokens = 0;
    for (int64_t i = 0; i < count; i++) tokens += blocks[i].count;
    return tokens * width < FEW_NUMBERS ? 1 : threads;
}

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
template <class V>
struct Lanes {
    typedef int Type __attribute__((vector_size(sizeof(V))));
};
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Lanes<std::decay_t<decltype(a)>>::Type){__VA_ARGS__})
#endif

INLINE void transpose(V4* r) {
    const V4 a = SHUFFLE(r[0], r[1], 0, 4, 1, 5), b = SHUFFLE(r[2], r[3], 0, 4, 1, 5);
    const V4 c = SHUFFLE(r[0], r[1], 2, 6, 3, 7), d = SHUFFLE(r[2], r[3], 2, 6, 3, 7);
    r[0] = SHUFFLE(a, b, 0, 1, 4, 5);
    r[1] = SHUFFLE(a, b, 2, 3, 6, 7);
    r[2] = SHUFFLE(c, d, 0, 1, 4, 5);
    r[3] = SHUFFLE(c, d, 2, 3, 6, 7);
}

INLINE void transpose(V8* r) {
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

template <class V>
struct Anywhere {  // V at any address of a float
    typedef V Type __attribute__((aligned(4), may_alias));
};

template <class V>
INLINE V load(const float* from) {
    return *reinterpret_cast<const typename Anywhere<V>::Type*>(from);
}
template <class V>
INLINE V load(const BFloat16* from) {
    V result;
    for (int64_t i = 0; i < LANES<V>; i++) result[i] = to_float(from[i]);
    return result;
}
template <class V>
INLINE void store(float* to, V value) {
    *reinterpret_cast<typename Anywhere<V>::Type*>(to) = value;
}
template <class V>
INLINE void store(BFloat16* to, V value) {
    for (int64_t i = 0; i < LANES<V>; i++) round_to(value[i], to[i]);
}
