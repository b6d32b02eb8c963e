// The machine that the kernels run on: its instruction sets, of which one is chosen when the module is loaded, and its
// second cache. A loop over blocks is compiled once for each set.
#pragma once

#include <omp.h>
#include <unistd.h>

#include <cstdint>

#define INLINE inline __attribute__((always_inline))  // so that it is compiled for the instruction set of its caller
#define INLINE_BODY __attribute__((always_inline))    // the same for a lambda

typedef float V4 __attribute__((vector_size(16)));
typedef float V8 __attribute__((vector_size(32)));
typedef float V16 __attribute__((vector_size(64)));

template <class V>
constexpr int64_t LANES = sizeof(V) / sizeof(float);

// What a set has in registers. Widest: for sums. Square: a block of so many rows and columns is transposed in them. gcc
// keeps a vector that is wider than the registers in memory: sums of V16 took eight times as long with AVX2 as those of V8.
struct Plain {  // SSE2 on x86-64, NEON on arm64
    typedef V4 Widest;
    typedef V4 Square;
};
struct Avx2 {
    typedef V8 Widest;
    typedef V8 Square;
};
struct Avx512 {
    typedef V16 Widest;
    typedef V8 Square;
};

enum InstructionSet { PLAIN = 0, AVX2 = 1, AVX512 = 2 };

#if defined(__x86_64__) && defined(__GNUC__)
#define SEVERAL_SETS
inline bool machine_has(InstructionSet set) {
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    return set == PLAIN || (avx2 && (set == AVX2 || avx512));
}
inline bool machine_has_vnni() { return machine_has(AVX512) && __builtin_cpu_supports("avx512vnni"); }
#else
inline bool machine_has(InstructionSet set) { return set == PLAIN; }
#endif

inline InstructionSet best_set() { return machine_has(AVX512) ? AVX512 : machine_has(AVX2) ? AVX2 : PLAIN; }

inline int64_t second_cache_of_machine() {
    constexpr int64_t USUAL = 512 << 10;  // bytes, where the system does not say
#ifdef _SC_LEVEL2_CACHE_SIZE
    const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (bytes > 0) return bytes;
#endif
    return USUAL;
}

struct Choice {  // what the kernels use: found at load; changed by SPARSEHUB_CPU, tests and benchmarks
    InstructionSet set = best_set();
    int64_t second_cache = second_cache_of_machine();  // bytes
};
inline Choice chosen;

#define SHARE_OUT(NAME, TARGET, SET)                                      \
    template <class Body>                                                 \
    TARGET void NAME(int64_t count, int threads, const Body& body) {      \
        _Pragma("omp parallel for schedule(static) num_threads(threads)") \
        for (int64_t i = 0; i < count; i++) body(SET{}, i);               \
    }
SHARE_OUT(share_out_plain, , Plain)
#ifdef SEVERAL_SETS
SHARE_OUT(share_out_avx2, __attribute__((target("arch=x86-64-v3"))), Avx2)
SHARE_OUT(share_out_avx512, __attribute__((target("arch=x86-64-v4"))), Avx512)
#endif

// body(set, i) for every i below count, compiled for the chosen instruction set. body is an INLINE_BODY lambda.
template <class Body>
void share_out(int64_t count, int threads, const Body& body) {
#ifdef SEVERAL_SETS
    if (chosen.set == AVX512) return share_out_avx512(count, threads, body);
    if (chosen.set == AVX2) return share_out_avx2(count, threads, body);
#endif
    share_out_plain(count, threads, body);
}
