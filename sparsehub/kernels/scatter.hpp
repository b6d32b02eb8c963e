// Gather and scatter over an arena, at the speed of memory.
#pragma once

#include <omp.h>

#include <algorithm>

#include "numbers.hpp"

constexpr int64_t AHEAD = 128;    // entries between a prefetch and its use: many times what a cache miss takes
constexpr int SECOND_LEVEL = 2;   // prefetches go to the second cache: it waits for more lines at once than the first
constexpr int64_t ALONE = 16384;  // entries below which a second thread costs more than it saves

// Runs body(i) for every i below count; place(i) is the address that it will touch, fetched ahead of time. Each thread
// has one stretch, always the same. Backwards it begins at the end: a restore then finds what the apply before it
// touched last, still in the cache.
template <bool BACKWARDS, class Place, class Body>
void for_each_entry(int64_t count, int threads, Place place, Body body) {
#pragma omp parallel num_threads(count < ALONE ? 1 : threads)
    {
        const int64_t start = count * omp_get_thread_num() / omp_get_num_threads();
        const int64_t stop = count * (omp_get_thread_num() + 1) / omp_get_num_threads();
        const auto turn = [=](int64_t i) { return BACKWARDS ? start + stop - 1 - i : i; };
        for (int64_t i = start; i < stop; i++) {
            __builtin_prefetch(place(turn(std::min(i + AHEAD, stop - 1))), 0, SECOND_LEVEL);
            body(turn(i));
        }
    }
}

template <class T, class P>
void gather(const T* arena, const P* positions, T* out, int64_t count, int threads) {
    for_each_entry<false>(
        count, threads, [=](int64_t i) { return arena + positions[i]; },
        [=](int64_t i) { out[i] = arena[positions[i]]; });
}

template <class T, class P>
void scatter_copy(T* arena, const P* positions, const T* values, int64_t count, int threads) {
    for_each_entry<true>(
        count, threads, [=](int64_t i) { return arena + positions[i]; },
        [=](int64_t i) { arena[positions[i]] = values[i]; });
}

template <class T, class P>
void scatter_add(T* arena, const P* positions, const float* values, int64_t count, int threads) {
    for_each_entry<false>(
        count, threads, [=](int64_t i) { return arena + positions[i]; },
        [=](int64_t i) {
            T& entry = arena[positions[i]];
            round_to(to_float(entry) + values[i], entry);
        });
}
