// The number types of the kernels, and how each becomes a float and is rounded from one.
#pragma once

#include <cstdint>
#include <cstring>

enum Dtype { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2 };

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

#if defined(__FLT16_MAX__) && (defined(__x86_64__) || defined(__clang__) || __GNUC__ >= 13)  // gcc 12 for arm64: C alone
#define HAS_FLOAT16 1
inline float to_float(_Float16 value) { return static_cast<float>(value); }
inline void round_to(float value, _Float16& out) { out = static_cast<_Float16>(value); }
#else
#define HAS_FLOAT16 0
#endif

template <class T>
T* at(uint64_t address) {
    return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}
