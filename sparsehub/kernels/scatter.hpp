// Gather and scatter over an arena, at the speed of memory.
#pragma once

#include <omp.h>

#include <algorithm>

#include "numbers.hpp"

constexpr int64_t AHEAD = 128;    // entries between a prefetch and its use: many times what a cache miss takes
constexpr int SECOND_LEVEL = 2;   // prefetches go to the second cache: it waits for more lines at once than the first
constexpr int64_t ALONE = 16384;  // entries below which a second thread costs more than it saves

constexpr int64_t PIECE = 512;    // entries whose positions are compared with the arena's size, just before their use

template <class P>
bool is_stray(P position, int64_t size) {
    return static_cast<uint64_t>(static_cast<int64_t>(position)) >= static_cast<uint64_t>(size);
}

// How many positions lie outside an arena of `size` entries: memory may have damaged one since it was checked. Compared
// one by one beside the writes, that cost a tenth of a switch. Neighbours share their high bits, so all of them together
// by OR are hardly larger than the largest: mostly that alone is compared.
template <class P>
int64_t count_stray(const P* positions, int64_t count, int64_t size) {
    P together = 0;
    for (int64_t i = 0; i < count; i++) together |= positions[i];
    if (!is_stray(together, size)) return 0;
    return std::count_if(positions, positions + count, [=](P position) { return is_stray(position, size); });
}

// Runs body(i) for every i below count whose position lies in the arena, and fetches the entry ahead of time; returns
// how many were left out. Each thread has one stretch, always the same. Backwards it begins at the end: a restore then
// finds what the apply before it touched last, still in the cache.
template <bool BACKWARDS, class T, class P, class Body>
int64_t for_each_entry(T* arena, int64_t size, const P* positions, int64_t count, int threads, Body body) {
    int64_t strays = 0;
#pragma omp parallel num_threads(count < ALONE ? 1 : threads) reduction(+ : strays)
    {
        const int64_t start = count * omp_get_thread_num() / omp_get_num_threads();
        const int64_t stop = count * (omp_get_thread_num() + 1) / omp_get_num_threads();
        const auto turn = [=](int64_t i) { return BACKWARDS ? start + stop - 1 - i : i; };
        for (int64_t first = start; first < stop; first += PIECE) {
            const int64_t end = std::min(first + PIECE, stop);
            const int64_t wild = count_stray(positions + (BACKWARDS ? turn(end - 1) : first), end - first, size);
            strays += wild;
            for (int64_t i = first; i < end; i++) {
                __builtin_prefetch(arena + positions[turn(std::min(i + AHEAD, stop - 1))], 0, SECOND_LEVEL);
                if (__builtin_expect(wild != 0, 0) && is_stray(positions[turn(i)], size)) continue;
                body(turn(i));
            }
        }
    }
    return strays;
}

// Each returns how many positions lie outside the arena's `size` entries; those are left out.

template <class T, class P>
int64_t gather(const T* arena, int64_t size, const P* positions, T* out, int64_t count, int threads) {
    return for_each_entry<false>(arena, size, positions, count, threads,
                                 [=](int64_t i) { out[i] = arena[positions[i]]; });
}

template <class T, class P>
int64_t scatter_copy(T* arena, int64_t size, const P* positions, const T* values, int64_t count, int threads) {
    return for_each_entry<true>(arena, size, positions, count, threads,
                                [=](int64_t i) { arena[positions[i]] = values[i]; });
}

template <class T, class P>
int64_t scatter_add(T* arena, int64_t size, const P* positions, const float* values, int64_t count, int threads) {
    return for_each_entry<false>(arena, size, positions, count, threads, [=](int64_t i) {
        T& entry = arena[positions[i]];
        round_to(to_float(entry) + values[i], entry);
    });
}
