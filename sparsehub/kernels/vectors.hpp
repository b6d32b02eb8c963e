// Vectors of eight and sixteen floats, and the structs in which Python describes a batch.
#pragma once

#include <omp.h>

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
INLINE void store8(float* to, V8 value) { *reinterpret_cast<Unaligned8*>(to) = value; }
INLINE void store8(BFloat16* to, V8 value) {
    for (int i = 0; i < 8; i++) round_to(value[i], to[i]);
}
