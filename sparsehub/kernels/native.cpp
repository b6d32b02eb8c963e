// The CPU kernels. Pointers and sizes in: nothing here knows torch, so one build serves every version of it.
// The contracts are those of sparsehub/kernels/__init__.py; sparsehub/kernels/native.py checks and calls.

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

enum Dtype { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2 };

constexpr int64_t AHEAD = 128;    // entries between a prefetch and its use: many times what a cache miss takes
constexpr int SECOND_LEVEL = 2;   // prefetches go to the second cache: it waits for more lines at once than the first
constexpr int64_t ALONE = 16384;  // below this many entries a second thread costs more than it brings

struct BFloat16 {
    uint16_t bits;
};

inline float to_float(float value) { return value; }
inline float to_float(BFloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline void round_to(float value, float& out) { out = value; }
inline void round_to(float value, BFloat16& out) {  // to the nearest, ties to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) {
        out.bits = static_cast<uint16_t>((bits >> 16) | 0x40);
        return;
    }
    out.bits = static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

#ifdef __FLT16_MAX__
#define HAS_FLOAT16 1
inline float to_float(_Float16 value) { return static_cast<float>(value); }
inline void round_to(float value, _Float16& out) { out = static_cast<_Float16>(value); }
#else
#define HAS_FLOAT16 0
#endif

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

// Calls f with a value of the integer type that has `bytes` bytes: copies need no more of a dtype than its size.
template <class F>
bool by_size(int bytes, F f) {
    switch (bytes) {
        case 1: f(uint8_t{}); return true;
        case 2: f(uint16_t{}); return true;
        case 4: f(uint32_t{}); return true;
        case 8: f(uint64_t{}); return true;
        default: return false;
    }
}

template <class F>
bool by_dtype(int dtype, F f) {
    switch (dtype) {
        case FLOAT32: f(float{}); return true;
        case BFLOAT16: f(BFloat16{}); return true;
#if HAS_FLOAT16
        case FLOAT16: f(_Float16{}); return true;
#endif
        default: return false;
    }
}

template <class F>
bool by_position(int bytes, F f) {
    switch (bytes) {
        case 4: f(int32_t{}); return true;
        case 8: f(int64_t{}); return true;
        default: return false;
    }
}

template <class T>
T* at(unsigned long long address) {
    return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

struct Call {  // what every call of this module has: three addresses, two kinds, a count, threads
    unsigned long long arena, positions, values;
    int kind, position_bytes, threads;
    Py_ssize_t count;

    bool parse(PyObject* arguments) {
        return PyArg_ParseTuple(arguments, "KKKiini", &arena, &positions, &values, &kind, &position_bytes, &count,
                                &threads) != 0;
    }
};

// Parses, lets go of the interpreter, runs `work(call)`, which says whether it knew the kinds.
template <class Work>
PyObject* run(PyObject* arguments, Work work) {
    Call call{};
    if (!call.parse(arguments)) return nullptr;
    bool known = false;
    Py_BEGIN_ALLOW_THREADS
    known = work(call);
    Py_END_ALLOW_THREADS
    if (!known) {
        PyErr_SetString(PyExc_TypeError, "no native kernel for this dtype or position type");
        return nullptr;
    }
    Py_RETURN_NONE;
}

PyObject* py_gather(PyObject*, PyObject* arguments) {
    return run(arguments, [](const Call& c) {
        bool known = false;
        by_position(c.position_bytes, [&](auto p) {
            known = by_size(c.kind, [&](auto t) {
                using T = decltype(t);
                gather(at<const T>(c.arena), at<const decltype(p)>(c.positions), at<T>(c.values), c.count, c.threads);
            });
        });
        return known;
    });
}

PyObject* py_scatter_copy(PyObject*, PyObject* arguments) {
    return run(arguments, [](const Call& c) {
        bool known = false;
        by_position(c.position_bytes, [&](auto p) {
            known = by_size(c.kind, [&](auto t) {
                using T = decltype(t);
                scatter_copy(at<T>(c.arena), at<const decltype(p)>(c.positions), at<const T>(c.values), c.count,
                             c.threads);
            });
        });
        return known;
    });
}

PyObject* py_scatter_add(PyObject*, PyObject* arguments) {
    return run(arguments, [](const Call& c) {
        bool known = false;
        by_position(c.position_bytes, [&](auto p) {
            known = by_dtype(c.kind, [&](auto t) {
                scatter_add(at<decltype(t)>(c.arena), at<const decltype(p)>(c.positions), at<const float>(c.values),
                            c.count, c.threads);
            });
        });
        return known;
    });
}

PyMethodDef methods[] = {
    {"gather", py_gather, METH_VARARGS, "(arena, positions, out, item_bytes, position_bytes, count, threads)"},
    {"scatter_copy", py_scatter_copy, METH_VARARGS,
     "(arena, positions, values, item_bytes, position_bytes, count, threads)"},
    {"scatter_add", py_scatter_add, METH_VARARGS, "(arena, positions, values, dtype, position_bytes, count, threads)"},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__native() {
    PyObject* made = PyModule_Create(&module);
    if (made != nullptr) PyModule_AddIntConstant(made, "HAS_FLOAT16", HAS_FLOAT16);
    return made;
}
