// The kernels as plain C functions, in float32: what compiled programs call (program_ops.hpp), without Python. Addresses
// are those that sparsehub/kernels/sparse.py makes; the number of threads is torch's own for the thread that calls.
#pragma once

#include <algorithm>
#include <vector>

#include "few_rows.hpp"
#include "gelu.hpp"
#include "int8_product.hpp"
#include "int8_rows.hpp"
#include "norms.hpp"
#include "sparse.hpp"

#if defined(__GNUC__)
#define EXPORTED extern "C" __attribute__((visibility("default")))
#else
#define EXPORTED extern "C"
#endif

constexpr int64_t MAX_SHORT_COLUMNS = 1 << 16;  // columns that uint16 can number

// Calls f with a value of the type that numbers so many columns.
template <class F>
void by_width(int64_t width, F f) {
    if (width <= MAX_SHORT_COLUMNS)
        f(uint16_t{});
    else
        f(int32_t{});
}

// y[i] = b + dW_t x[i] + db_t for every map. maps: [map_count, 4], the fields of `Map`; blocks: [count, 3].
EXPORTED void sparsehub_sparse_linear(const float* x, int64_t in, const int64_t* maps, int64_t map_count,
                                      const int64_t* blocks, int64_t count) {
    by_width(in, [&](auto c) {
        sparse_linear<float, decltype(c), BIAS>(x, in, reinterpret_cast<const Map*>(maps), map_count,
                                                reinterpret_cast<const Block*>(blocks), count, omp_get_max_threads());
    });
}

// y[i] = product[rows[i]] + dW_t x[rows[i]] + db_t for every map. maps and blocks as above, with the address of a product
// [., out] for that of b; rows: [tokens of the blocks], below the rows of x and of the products.
EXPORTED void sparsehub_shared_linear(const float* x, int64_t in, const int64_t* maps, int64_t map_count,
                                      const int64_t* blocks, int64_t count, const int64_t* rows) {
    by_width(in, [&](auto c) {
        sparse_linear<float, decltype(c), ROWS>(x, in, reinterpret_cast<const Map*>(maps), map_count,
                                                reinterpret_cast<const Block*>(blocks), count, omp_get_max_threads(),
                                                rows);
    });
}

// y[i] = x[i] W' + b + dW_t x[i] + db_t for every map, the products in 8 bits. x: [tokens, in]; maps as above; weights:
// [map_count, 3], where each map's packed weights, their scales and their sums are (Int8Product).
EXPORTED void sparsehub_int8_linear(const float* x, int64_t tokens, int64_t in, const int64_t* maps,
                                    const int64_t* weights, int64_t map_count, const int64_t* blocks, int64_t count) {
    static thread_local std::vector<uint8_t> levels;  // kept from one call to the next
    static thread_local std::vector<float> units;
    const int64_t padded = (in + GROUP - 1) / GROUP * GROUP;
    const int threads = omp_get_max_threads(), steps = int8_sums().steps;
    if (levels.size() < static_cast<size_t>(tokens * padded)) levels.resize(tokens * padded);
    if (units.size() < static_cast<size_t>(tokens)) units.resize(tokens);
    quantise_rows(x, levels.data(), units.data(), tokens, in, padded, steps, threads);
    sparsehub_sparse_linear(x, in, maps, map_count, blocks, count);
    for (const Map* map = reinterpret_cast<const Map*>(maps); map_count > 0; map_count--, map++, weights += 3)
        int8_product({levels.data(), units.data(), tokens, padded, at<const int8_t>(weights[0]),
                      at<const float>(weights[1]), at<const int32_t>(weights[2]), map->out, steps + 1, nullptr,
                      at<float>(map->y)},
                     threads);
}

// y[i] = W[ids[i]] + dW_t[ids[i]]; W: [rows, width]. Returns how many ids are no row of W, and nothing is looked up then.
EXPORTED int64_t sparsehub_embedding(const int64_t* ids, int64_t tokens, const float* weight, int64_t rows, float* y,
                                     int64_t width, const int64_t* blocks, int64_t count, const int64_t* table) {
    const int64_t strays = std::count_if(ids, ids + tokens, [&](int64_t id) { return id < 0 || id >= rows; });
    if (strays) return strays;
    for (int64_t i = 0; i < tokens; i++) std::copy_n(weight + ids[i] * width, width, y + i * width);
    by_width(width, [&](auto c) {
        sparse_lookup<float, decltype(c)>(ids, y, width, reinterpret_cast<const Block*>(blocks), count,
                                          reinterpret_cast<const Matrix*>(table), omp_get_max_threads());
    });
    return 0;
}

// y[i] = norm(x[i]) * w_t + b_t: a LayerNorm where `centered`, else an RMSNorm.
EXPORTED void sparsehub_norm(const float* x, float* y, int64_t width, const int64_t* blocks, int64_t count,
                             const int64_t* table, float epsilon, int centered) {
    (centered ? norm<true, float> : norm<false, float>)(x, y, width, reinterpret_cast<const Block*>(blocks), count,
                                                        reinterpret_cast<const Scale*>(table), epsilon,
                                                        omp_get_max_threads());
}

// y [rows, out] = x [rows, in] w [out, in]^T + bias, and y as it was where `add`; bias may be absent. Returns 0, and does
// nothing, where a library's product is faster.
EXPORTED int sparsehub_few_rows(const float* x, int64_t rows, int64_t in, const float* w, const float* bias, float* y,
                                int64_t out, int add) {
    if (!takes_few_rows(rows, in, out)) return 0;
    (add ? few_rows<true> : few_rows<false>)(x, rows, w, in, bias, y, out, omp_get_max_threads());
    return 1;
}

// y[i] = gelu(x[i]).
EXPORTED void sparsehub_gelu(const float* x, float* y, int64_t count) { gelu(x, y, count, omp_get_max_threads()); }
