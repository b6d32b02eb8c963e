// The product of rows of 8 bits (int8_rows.hpp) with weights of 8 bits. Sums are exact, in 32 bits; they are scaled, and added
// to what y is to begin with, while they are at hand.
//
// Weights are packed in panels of 64 outputs: [panels, groups, 64, 4], four inputs of an output side by side, since that is
// what an instruction multiplies and sums. A tile of six rows and a panel's outputs is summed in registers.
#pragma once

#include <algorithm>
#include <cstring>

#include "vectors.hpp"

#ifdef SEVERAL_SETS
#include <immintrin.h>
#endif

constexpr int64_t PANEL = 64;          // outputs of a panel
constexpr int64_t GROUP = 4;           // inputs of a group
constexpr int64_t TILE_ROWS = 6;       // of the largest tile: with VNNI as many as there are registers for
constexpr int64_t ROWS_AT_HAND = 96;   // that pass by one panel after the other: they stay in the second cache
constexpr int64_t FEWEST_ROWS = 24;    // of a thread; where there are fewer, threads share out the outputs
constexpr int64_t FEW_PRODUCTS = 1 << 20;  // below which one thread does all the work

struct Int8Product {
    const uint8_t* levels;  // [rows, padded]: `zero` and the rounded input
    const float* units;     // [rows]: what a level is worth
    int64_t rows, padded;   // padded: inputs, up to a whole group
    const int8_t* weights;  // packed
    const float* scales;    // [out]: what a level of a weight is worth
    const int32_t* sums;    // [out]: of an output's weights, which the inputs' zero is taken off by
    int64_t out;
    int32_t zero;           // the level that stands for 0
    const float* start;     // [out], what y begins with; or absent, then it is y as it was
    float* y;               // [rows, out]
};

// The sums of one panel: totals [rows, PANEL] = levels [rows, padded] times its weights; rows: TILE_ROWS at most.
typedef void SumTile(const uint8_t* levels, int64_t padded, const int8_t* weights, int64_t rows, int32_t* totals);

inline void sum_tile_plain(const uint8_t* levels, int64_t padded, const int8_t* weights, int64_t rows, int32_t* totals) {
    std::fill(totals, totals + rows * PANEL, 0);
    for (int64_t c = 0; c < padded; c += GROUP, weights += PANEL * GROUP)
        for (int64_t r = 0; r < rows; r++) {
            const uint8_t* x = levels + r * padded + c;
            for (int64_t o = 0; o < PANEL; o++)
                for (int64_t j = 0; j < GROUP; j++) totals[r * PANEL + o] += x[j] * weights[o * GROUP + j];
        }
}

#ifdef SEVERAL_SETS
INLINE int32_t group_at(const uint8_t* levels) {
    int32_t group;
    std::memcpy(&group, levels, sizeof group);
    return group;
}

#define UNROLLED _Pragma("GCC unroll 8")  // early: an array of sums is kept in registers then
#define FOR_AVX2 __attribute__((target("arch=x86-64-v3")))
#define FOR_VNNI __attribute__((target("arch=x86-64-v4,avx512vnni")))

// Sixteen of a panel's outputs. Two products are summed in 16 bits, which hold them where levels have 7 bits:
// 2 * 127 * 127 < 2^15.
template <int R>
FOR_AVX2 inline void sum_sixteen(const uint8_t* levels, int64_t padded, const int8_t* weights, int32_t* totals) {
    __m256i sums[R][2];
    UNROLLED for (int r = 0; r < R; r++)
        UNROLLED for (int j = 0; j < 2; j++) sums[r][j] = _mm256_setzero_si256();
    const __m256i ones = _mm256_set1_epi16(1);
    for (int64_t c = 0; c < padded; c += GROUP, weights += PANEL * GROUP) {
        __m256i own[2];
        UNROLLED for (int j = 0; j < 2; j++) own[j] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + 32 * j));
        UNROLLED for (int r = 0; r < R; r++) {
            const __m256i x = _mm256_set1_epi32(group_at(levels + r * padded + c));
            UNROLLED for (int j = 0; j < 2; j++) {
                const __m256i pairs = _mm256_maddubs_epi16(x, own[j]);
                sums[r][j] = _mm256_add_epi32(sums[r][j], _mm256_madd_epi16(pairs, ones));
            }
        }
    }
    UNROLLED for (int r = 0; r < R; r++)
        UNROLLED for (int j = 0; j < 2; j++)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(totals + r * PANEL + 8 * j), sums[r][j]);
}

FOR_AVX2 inline void sum_tile_avx2(const uint8_t* levels, int64_t padded, const int8_t* weights, int64_t rows,
                                   int32_t* totals) {
    constexpr int TOGETHER = 3;
    for (int64_t o = 0; o < PANEL; o += 16) {
        const int8_t* own = weights + o * GROUP;
        int64_t r = 0;
        for (; r + TOGETHER <= rows; r += TOGETHER)
            sum_sixteen<TOGETHER>(levels + r * padded, padded, own, totals + r * PANEL + o);
        for (; r < rows; r++) sum_sixteen<1>(levels + r * padded, padded, own, totals + r * PANEL + o);
    }
}

template <int R>
FOR_VNNI inline void sum_rows_vnni(const uint8_t* levels, int64_t padded, const int8_t* weights, int32_t* totals) {
    __m512i sums[R][4];
    UNROLLED for (int r = 0; r < R; r++)
        UNROLLED for (int j = 0; j < 4; j++) sums[r][j] = _mm512_setzero_si512();
    for (int64_t c = 0; c < padded; c += GROUP, weights += PANEL * GROUP) {
        __m512i own[4];
        UNROLLED for (int j = 0; j < 4; j++) own[j] = _mm512_loadu_si512(weights + 64 * j);
        UNROLLED for (int r = 0; r < R; r++) {
            const __m512i x = _mm512_set1_epi32(group_at(levels + r * padded + c));
            UNROLLED for (int j = 0; j < 4; j++) sums[r][j] = _mm512_dpbusd_epi32(sums[r][j], x, own[j]);
        }
    }
    UNROLLED for (int r = 0; r < R; r++)
        UNROLLED for (int j = 0; j < 4; j++) _mm512_storeu_si512(totals + r * PANEL + 16 * j, sums[r][j]);
}

FOR_VNNI inline void sum_tile_vnni(const uint8_t* levels, int64_t padded, const int8_t* weights, int64_t rows,
                                   int32_t* totals) {
    switch (rows) {
        case 1: return sum_rows_vnni<1>(levels, padded, weights, totals);
        case 2: return sum_rows_vnni<2>(levels, padded, weights, totals);
        case 3: return sum_rows_vnni<3>(levels, padded, weights, totals);
        case 4: return sum_rows_vnni<4>(levels, padded, weights, totals);
        case 5: return sum_rows_vnni<5>(levels, padded, weights, totals);
        default: return sum_rows_vnni<TILE_ROWS>(levels, padded, weights, totals);
    }
}
#endif

struct Int8Sums {  // how the chosen instruction set sums, and how many levels there may be on either side of 0 for it
    SumTile* tile;
    int steps;
};

inline Int8Sums int8_sums() {
#ifdef SEVERAL_SETS
    if (chosen.set == AVX512 && machine_has_vnni()) return {sum_tile_vnni, 127};
    if (chosen.set != PLAIN) return {sum_tile_avx2, 63};
#endif
    return {sum_tile_plain, 127};
}

// y [count, some outputs of a panel] = start + totals, without the inputs' zero, times unit and scale.
INLINE void finish_tile(const Int8Product& p, int64_t row, int64_t count, int64_t from, const int32_t* totals) {
    const int64_t width = std::min(PANEL, p.out - from);
    const float *scales = p.scales + from, *start = p.start ? p.start + from : nullptr;
    const int32_t* sums = p.sums + from;
    for (int64_t r = 0; r < count; r++, totals += PANEL) {
        float* __restrict y = p.y + (row + r) * p.out + from;
        const float unit = p.units[row + r];
        for (int64_t c = 0; c < width; c++) {
            const float product = static_cast<float>(totals[c] - p.zero * sums[c]) * scales[c] * unit;
            y[c] = (start ? start[c] : y[c]) + product;
        }
    }
}

// Rows first to last of y, and outputs of panels from to to. As many rows as are at hand pass by a panel before the next.
INLINE void int8_part(const Int8Product& p, SumTile* sum, int64_t first, int64_t last, int64_t from, int64_t to) {
    alignas(64) int32_t totals[TILE_ROWS * PANEL];
    for (; first < last; first += ROWS_AT_HAND) {
        const int64_t end = std::min(last, first + ROWS_AT_HAND);
        for (int64_t panel = from; panel < to; panel++)
            for (int64_t row = first; row < end; row += TILE_ROWS) {
                const int64_t count = std::min(TILE_ROWS, end - row);
                sum(p.levels + row * p.padded, p.padded, p.weights + panel * PANEL * p.padded, count, totals);
                finish_tile(p, row, count, panel * PANEL, totals);
            }
    }
}

// The whole product. Many rows are shared out among threads; of few rows the outputs, so that each thread reads its own weights.
inline void int8_product(const Int8Product& p, int threads) {
    SumTile* sum = int8_sums().tile;
    const int64_t panels = (p.out + PANEL - 1) / PANEL;
    if (p.rows * p.padded * p.out < FEW_PRODUCTS) threads = 1;
    if (p.rows < threads * FEWEST_ROWS) {
        const int64_t parts = std::min<int64_t>(threads, panels);
        share_out(parts, threads, [=](auto, int64_t i) INLINE_BODY {
            int8_part(p, sum, 0, p.rows, panels * i / parts, panels * (i + 1) / parts);
        });
    } else {
        const int64_t each = (p.rows + threads * TILE_ROWS - 1) / (threads * TILE_ROWS) * TILE_ROWS;
        share_out((p.rows + each - 1) / each, threads, [=](auto, int64_t i) INLINE_BODY {
            int8_part(p, sum, i * each, std::min(p.rows, (i + 1) * each), 0, panels);
        });
    }
}
