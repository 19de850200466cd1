/* Numbers of both kinds, 16 at a time: float32, or bfloat16 where the processor multiplies pairs of it (AVX512_BF16).
   `half` says which, as a constant: every function here is inlined into a caller for one kind. */

#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define BOTH(function, ...) (half ? function(__VA_ARGS__, 1) : function(__VA_ARGS__, 0))
#define LANES 16

typedef float lanes __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t words __attribute__((vector_size(64), aligned(4), may_alias));

INLINE float widened(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE uint16_t narrowed(float value) { /* to the nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

INLINE float get(const void *from, long i, int half) {
    return half ? widened(((const uint16_t *)from)[i]) : ((const float *)from)[i];
}

INLINE void put(void *into, long i, float value, int half) {
    if (half) ((uint16_t *)into)[i] = narrowed(value);
    else ((float *)into)[i] = value;
}

INLINE float rounded(float value, int half) { return half ? widened(narrowed(value)) : value; }

INLINE void *at(const void *base, long element, int half) { return (char *)base + (half ? 2 : 4) * element; }

INLINE lanes load(const void *from, long i, int half) {
    lanes values;
    if (half)
        for (int j = 0; j < LANES; j++) values[j] = widened(((const uint16_t *)from)[i + j]);
    else
        values = *(const lanes *)at(from, i, 0);
    return values;
}

INLINE void store(void *into, long i, lanes values, int half) {
#ifdef __AVX512BF16__
    if (half) {
        _mm256_storeu_si256(at(into, i, 1), (__m256i)_mm512_cvtneps_pbh((__m512)values));
        return;
    }
#endif
    if (half)
        for (int j = 0; j < LANES; j++) ((uint16_t *)into)[i + j] = narrowed(values[j]);
    else
        *(lanes *)at(into, i, 0) = values;
}

INLINE lanes greater(lanes a, lanes b) {
    words mask = a > b;
    return (lanes)(((words)a & mask) | ((words)b & ~mask));
}

/* e^x within 2 units in the last place, for x from -87 to 88; what is outside counts as the border */
INLINE lanes exponential(lanes x) {
    const lanes zero = {0};
    x = -greater(-greater(x, zero - 87.0f), zero - 88.0f);
    lanes shifted = x * 1.44269504f + 12582912.0f; /* the integer part ends up in the low bits */
    lanes n = shifted - 12582912.0f;
    lanes r = x - n * 0.693359375f + n * 2.12194440e-4f;
    lanes p = zero + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return (lanes)((words)p + ((words)shifted << 23));
}
