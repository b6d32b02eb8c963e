// Gather and scatter over an arena, at the speed of memory.
#pragma once

#include <omp.h>

#include <algorithm>

#include "numbers.hpp"

constexpr int64_t AHEAD = 128;    // entries of a piece, which are fetched so long before their use: many times a cache miss
constexpr int SECOND_LEVEL = 2;   // prefetches go to the second cache: it waits for more lines at once than the first
constexpr int64_t ALONE = 16384;  // entries below which a second thread costs more than it saves

template <class P>
bool is_stray(P position, int64_t size) {
    return static_cast<uint64_t>(static_cast<int64_t>(position)) >= static_cast<uint64_t>(size);
}

// How many of some positions lie outside an arena of `size` entries. together: all of them by OR. Neighbours share their
// high bits, so that is hardly larger than the largest: mostly it alone is compared.
template <class P>
int64_t count_stray(const P* positions, int64_t count, int64_t size, P together) {
    if (!is_stray(together, size)) return 0;
    return std::count_if(positions, positions + count, [=](P position) { return is_stray(position, size); });
}

// Runs body(i) for every i below count whose position lies in the arena, and fetches the entry ahead of time; returns
// how many were left out, since memory may have damaged a position. Each thread has one stretch, always the same.
// Backwards it begins at the end: a restore then finds what the apply before it touched last, still in the cache.
// A piece's positions are looked at where its entries are fetched, while the piece before it is worked on.
template <bool BACKWARDS, class T, class P, class Body>
int64_t for_each_entry(T* arena, int64_t size, const P* positions, int64_t count, int threads, Body body) {
    int64_t strays = 0;
#pragma omp parallel num_threads(count < ALONE ? 1 : threads) reduction(+ : strays)
    {
        const int64_t start = count * omp_get_thread_num() / omp_get_num_threads();
        const int64_t stop = count * (omp_get_thread_num() + 1) / omp_get_num_threads();
        const auto turn = [=](int64_t i) { return BACKWARDS ? start + stop - 1 - i : i; };
        P together = static_cast<P>(-1);  // nothing is known of the first piece
        for (int64_t first = start; first < stop; first += AHEAD) {
            const int64_t end = std::min(first + AHEAD, stop);
            const P* piece = positions + (BACKWARDS ? turn(end - 1) : first);
            const int64_t wild = count_stray(piece, end - first, size, together);
            strays += wild;
            together = 0;
            for (int64_t i = first; i < end; i++) {
                const P coming = positions[turn(std::min(i + AHEAD, stop - 1))];
                __builtin_prefetch(arena + coming, 0, SECOND_LEVEL);
                together |= coming;
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
