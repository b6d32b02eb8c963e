// The CPU kernels as a Python module. Addresses and sizes in: nothing here knows torch, so one build serves every
// version of it. The contracts are those of sparsehub/kernels/__init__.py; sparsehub/kernels/native.py checks and calls.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "compress.hpp"
#include "exported.hpp"
#include "gelu.hpp"
#include "int8_product.hpp"
#include "int8_rows.hpp"
#include "norms.hpp"
#include "scatter.hpp"
#include "sparse.hpp"

namespace {

typedef unsigned long long Address;

// Each calls f with a value of the type that a code stands for, and says whether it knows the code.
template <class F>
bool by_size(int bytes, F f) {  // copies need no more of a dtype than its size
    switch (bytes) {
        case 1: return f(uint8_t{});
        case 2: return f(uint16_t{});
        case 4: return f(uint32_t{});
        case 8: return f(uint64_t{});
        default: return false;
    }
}

template <class F>
bool by_dtype(int dtype, F f) {
    switch (dtype) {
        case FLOAT32: return f(float{});
        case BFLOAT16: return f(BFloat16{});
#if HAS_FLOAT16
        case FLOAT16: return f(_Float16{});
#endif
        default: return false;
    }
}

template <class F>
bool by_matrix_dtype(int dtype, F f) {
    switch (dtype) {
        case FLOAT32: return f(float{});
        case BFLOAT16: return f(BFloat16{});
        default: return false;
    }
}

template <class F>
bool by_position(int bytes, F f) {
    switch (bytes) {
        case 4: return f(int32_t{});
        case 8: return f(int64_t{});
        default: return false;
    }
}

template <class F>
bool by_column(int bytes, F f) {
    switch (bytes) {
        case 2: return f(uint16_t{});
        case 4: return f(int32_t{});
        default: return false;
    }
}

// Releases the GIL and runs `work`, which says whether it knew the types.
template <class Work>
PyObject* run(Work work) {
    bool known = false;
    Py_BEGIN_ALLOW_THREADS
    known = work();
    Py_END_ALLOW_THREADS
    if (!known) {
        PyErr_SetString(PyExc_TypeError, "no native kernel for these types");
        return nullptr;
    }
    Py_RETURN_NONE;
}

struct Entries {  // what gather and scatter have in common. kind: bytes of an item, or a dtype
    Address arena, positions, values;
    int kind, position_bytes, threads;
    Py_ssize_t count, size;  // of positions; of the arena

    bool parse(PyObject* arguments) {
        return PyArg_ParseTuple(arguments, "KKKiinin", &arena, &positions, &values, &kind, &position_bytes, &count,
                                &threads, &size) != 0;
    }
};

// Runs `work`, which sets the number of positions outside the arena, and returns that number.
template <class Work>
PyObject* run_entries(Work work) {
    int64_t strays = 0;
    PyObject* done = run([&] { return work(strays); });
    if (done == nullptr) return nullptr;
    Py_DECREF(done);
    return PyLong_FromLongLong(strays);
}

PyObject* py_gather(PyObject*, PyObject* arguments) {
    Entries e{};
    if (!e.parse(arguments)) return nullptr;
    return run_entries([&](int64_t& strays) {
        return by_position(e.position_bytes, [&](auto p) {
            return by_size(e.kind, [&](auto t) {
                using T = decltype(t);
                strays = gather(at<const T>(e.arena), e.size, at<const decltype(p)>(e.positions), at<T>(e.values),
                                e.count, e.threads);
                return true;
            });
        });
    });
}

PyObject* py_scatter_copy(PyObject*, PyObject* arguments) {
    Entries e{};
    if (!e.parse(arguments)) return nullptr;
    return run_entries([&](int64_t& strays) {
        return by_position(e.position_bytes, [&](auto p) {
            return by_size(e.kind, [&](auto t) {
                using T = decltype(t);
                strays = scatter_copy(at<T>(e.arena), e.size, at<const decltype(p)>(e.positions),
                                      at<const T>(e.values), e.count, e.threads);
                return true;
            });
        });
    });
}

PyObject* py_scatter_add(PyObject*, PyObject* arguments) {
    Entries e{};
    if (!e.parse(arguments)) return nullptr;
    return run_entries([&](int64_t& strays) {
        return by_position(e.position_bytes, [&](auto p) {
            return by_dtype(e.kind, [&](auto t) {
                strays = scatter_add(at<decltype(t)>(e.arena), e.size, at<const decltype(p)>(e.positions),
                                     at<const float>(e.values), e.count, e.threads);
                return true;
            });
        });
    });
}

PyObject* py_compress(PyObject*, PyObject* arguments) {
    Address positions, values, starts, columns, out_values, order;
    int position_bytes, transposed, column_bytes;
    Py_ssize_t count, rows, width;
    if (!PyArg_ParseTuple(arguments, "KiKnnniKKiKK", &positions, &position_bytes, &values, &count, &rows, &width,
                          &transposed, &starts, &columns, &column_bytes, &out_values, &order))
        return nullptr;
    return run([&] {
        return by_position(position_bytes, [&](auto p) {
            return by_column(column_bytes, [&](auto c) {
                const auto* from = at<const decltype(p)>(positions);
                auto* to = at<decltype(c)>(columns);
                if (transposed)
                    compress_transposed(from, at<const float>(values), count, width, at<int32_t>(starts), to,
                                        at<float>(out_values));
                else
                    compress(from, at<const float>(values), count, rows, width, at<int32_t>(starts), to,
                             at<float>(out_values));
                order_rows(at<const int32_t>(starts), transposed ? width : rows, at<uint8_t>(order));
                return true;
            });
        });
    });
}

PyObject* py_sparse_linear(PyObject*, PyObject* arguments) {
    Address x, maps, blocks, rows;
    int dtype, column_bytes, fresh, threads;
    Py_ssize_t in, map_count, count;
    if (!PyArg_ParseTuple(arguments, "KinipKnKniK", &x, &dtype, &in, &column_bytes, &fresh, &maps, &map_count, &blocks,
                          &count, &threads, &rows))
        return nullptr;
    return run([&] {
        return by_column(column_bytes, [&](auto c) {
            return by_matrix_dtype(dtype, [&](auto t) {
                using T = decltype(t);
                using C = decltype(c);
                const auto kernel = rows    ? sparse_linear<T, C, ROWS>
                                    : fresh ? sparse_linear<T, C, BIAS>
                                            : sparse_linear<T, C, ITSELF>;
                kernel(at<const T>(x), in, at<const Map>(maps), map_count, at<const Block>(blocks), count, threads,
                       at<const int64_t>(rows));
                return true;
            });
        });
    });
}

PyObject* py_sparse_lookup(PyObject*, PyObject* arguments) {
    Address ids, y, blocks, table;
    int dtype, column_bytes, threads;
    Py_ssize_t width, count;
    if (!PyArg_ParseTuple(arguments, "KKiniKnKi", &ids, &y, &dtype, &width, &column_bytes, &blocks, &count, &table,
                          &threads))
        return nullptr;
    return run([&] {
        return by_column(column_bytes, [&](auto c) {
            return by_matrix_dtype(dtype, [&](auto t) {
                using T = decltype(t);
                sparse_lookup<T, decltype(c)>(at<const int64_t>(ids), at<T>(y), width, at<const Block>(blocks), count,
                                              at<const Matrix>(table), threads);
                return true;
            });
        });
    });
}

PyObject* py_scale_shift(PyObject*, PyObject* arguments) {
    Address y, blocks, table;
    int dtype, threads;
    Py_ssize_t width, count;
    if (!PyArg_ParseTuple(arguments, "KinKnKi", &y, &dtype, &width, &blocks, &count, &table, &threads)) return nullptr;
    return run([&] {
        return by_matrix_dtype(dtype, [&](auto t) {
            scale_shift(at<decltype(t)>(y), width, at<const Block>(blocks), count, at<const Scale>(table), threads);
            return true;
        });
    });
}

PyObject* py_norm(PyObject*, PyObject* arguments) {
    Address x, y, blocks, table;
    int dtype, centered, threads;
    Py_ssize_t width, count;
    float epsilon;
    if (!PyArg_ParseTuple(arguments, "KKinKnKfii", &x, &y, &dtype, &width, &blocks, &count, &table, &epsilon, &centered,
                          &threads))
        return nullptr;
    return run([&] {
        return by_matrix_dtype(dtype, [&](auto t) {
            using T = decltype(t);
            (centered ? norm<true, T> : norm<false, T>)(at<const T>(x), at<T>(y), width, at<const Block>(blocks), count,
                                                        at<const Scale>(table), epsilon, threads);
            return true;
        });
    });
}

PyObject* py_gelu(PyObject*, PyObject* arguments) {
    Address x, y;
    Py_ssize_t count;
    int threads;
    if (!PyArg_ParseTuple(arguments, "KKni", &x, &y, &count, &threads)) return nullptr;
    return run([&] {
        gelu(at<const float>(x), at<float>(y), count, threads);
        return true;
    });
}

PyObject* py_quantise_rows(PyObject*, PyObject* arguments) {
    Address x, levels, units;
    Py_ssize_t rows, width, padded;
    int steps, threads;
    if (!PyArg_ParseTuple(arguments, "KKKnnnii", &x, &levels, &units, &rows, &width, &padded, &steps, &threads))
        return nullptr;
    return run([&] {
        quantise_rows(at<const float>(x), at<uint8_t>(levels), at<float>(units), rows, width, padded, steps, threads);
        return true;
    });
}

PyObject* py_int8_product(PyObject*, PyObject* arguments) {
    Address levels, units, weights, scales, sums, start, y;
    Py_ssize_t rows, padded, out;
    int steps, threads;
    if (!PyArg_ParseTuple(arguments, "KKnnKKKniKKi", &levels, &units, &rows, &padded, &weights, &scales, &sums, &out,
                          &steps, &start, &y, &threads))
        return nullptr;
    return run([&] {
        if (steps > int8_sums().steps) return false;
        int8_product({at<const uint8_t>(levels), at<const float>(units), rows, padded, at<const int8_t>(weights),
                      at<const float>(scales), at<const int32_t>(sums), out, steps + 1, at<const float>(start),
                      at<float>(y)},
                     threads);
        return true;
    });
}

PyObject* py_int8_steps(PyObject*, PyObject*) { return PyLong_FromLong(int8_sums().steps); }

// The chosen instruction set, whether the machine has each, and the bytes of its second cache.
PyObject* py_machine(PyObject*, PyObject*) {
    return Py_BuildValue("(i(iii)n)", chosen.set, machine_has(PLAIN), machine_has(AVX2), machine_has(AVX512),
                         static_cast<Py_ssize_t>(chosen.second_cache));
}

PyObject* py_choose(PyObject*, PyObject* arguments) {
    int set;
    Py_ssize_t second_cache;
    if (!PyArg_ParseTuple(arguments, "in", &set, &second_cache)) return nullptr;
    if (set < PLAIN || set > AVX512 || !machine_has(static_cast<InstructionSet>(set))) {
        PyErr_SetString(PyExc_ValueError, "the machine does not have this instruction set");
        return nullptr;
    }
    chosen = {static_cast<InstructionSet>(set), second_cache};
    Py_RETURN_NONE;
}

constexpr int INTERFACE = 1;  // of these functions; native_module.py calls none of a module with another one

PyMethodDef methods[] = {
    {"gather", py_gather, METH_VARARGS, "(arena, positions, out, item_bytes, position_bytes, count, threads, size)"},
    {"scatter_copy", py_scatter_copy, METH_VARARGS,
     "(arena, positions, values, item_bytes, position_bytes, count, threads, size)"},
    {"scatter_add", py_scatter_add, METH_VARARGS,
     "(arena, positions, values, dtype, position_bytes, count, threads, size)"},
    {"compress", py_compress, METH_VARARGS,
     "(positions, position_bytes, values, count, rows, width, transposed, starts, columns, column_bytes, out_values, "
     "order)"},
    {"sparse_linear", py_sparse_linear, METH_VARARGS,
     "(x, dtype, in, column_bytes, fresh, maps, map_count, blocks, block_count, threads, rows)"},
    {"sparse_lookup", py_sparse_lookup, METH_VARARGS,
     "(ids, y, dtype, width, column_bytes, blocks, block_count, table, threads)"},
    {"scale_shift", py_scale_shift, METH_VARARGS, "(y, dtype, width, blocks, block_count, table, threads)"},
    {"norm", py_norm, METH_VARARGS, "(x, y, dtype, width, blocks, block_count, table, epsilon, centered, threads)"},
    {"gelu", py_gelu, METH_VARARGS, "(x, y, count, threads)"},
    {"quantise_rows", py_quantise_rows, METH_VARARGS, "(x, levels, units, rows, width, padded, steps, threads)"},
    {"int8_product", py_int8_product, METH_VARARGS,
     "(levels, units, rows, padded, weights, scales, sums, out, steps, start, y, threads)"},
    {"int8_steps", py_int8_steps, METH_NOARGS, "() -> levels of an input on either side of 0"},
    {"machine", py_machine, METH_NOARGS, "() -> (instruction set, which there are, bytes of the second cache)"},
    {"choose", py_choose, METH_VARARGS, "(instruction set, bytes of the second cache)"},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__native() {
    PyObject* made = PyModule_Create(&module);
    if (made == nullptr) return nullptr;
    PyModule_AddIntConstant(made, "INTERFACE", INTERFACE);
    PyModule_AddIntConstant(made, "HAS_FLOAT16", HAS_FLOAT16);
    PyModule_AddIntConstant(made, "WIDEST_BLOCK", WIDEST);
    return made;
}
