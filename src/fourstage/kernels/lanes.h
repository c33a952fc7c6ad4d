/* Vectors of floats, and what the kernels share. Widths follow the machine they are compiled on. */
#ifndef LANES_H
#define LANES_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#else
#define LANES 8
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t whole __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

INLINE lanes load(const float *from) { return *(const lanes *)from; }
INLINE void store(float *to, lanes value) { *(lanes *)to = value; }
INLINE lanes all(float value) { return value - (lanes){0}; }
INLINE lanes choose(whole mask, lanes yes, lanes no) {
    return (lanes)((mask & (whole)yes) | (~mask & (whole)no));
}
INLINE long padded(long count) { return (count + LANES - 1) / LANES * LANES; }

INLINE float sum_of(lanes x) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}
INLINE float max_of(lanes x) {
    float most = x[0];
    for (int i = 1; i < LANES; i++) most = x[i] > most ? x[i] : most;
    return most;
}

/* e^x to 2 units in the last place: x = n ln 2 + r, a polynomial for e^r, n into the exponent
   (Cephes). Zero below -87; NaN stays NaN. */
INLINE lanes exponential(lanes x) {
    whole vanishes = x < all(-87.0f);
    lanes bounded = choose(x > all(88.0f), all(88.0f), x);
    bounded = choose(vanishes, all(0.0f), bounded);
    lanes scaled = bounded * all(1.44269504f);
    lanes magic = all(12582912.0f);
    lanes n = (scaled + magic) - magic;
    lanes r = bounded - n * all(0.693359375f);
    r = r + n * all(2.12194440e-4f);
    lanes p = all(1.9875691500e-4f);
    p = p * r + all(1.3981999507e-3f);
    p = p * r + all(8.3334519073e-3f);
    p = p * r + all(4.1665795894e-2f);
    p = p * r + all(1.6666665459e-1f);
    p = p * r + all(5.0000001201e-1f);
    p = p * r * r + r + all(1.0f);
    whole power = (__builtin_convertvector(n, whole) + 127) << 23;
    return choose(vanishes, all(0.0f), p * (lanes)power);
}

INLINE float dot(const float *x, const float *y, long count) {
    lanes total = all(0.0f);
    long i = 0;
    for (; i + LANES <= count; i += LANES) total += load(x + i) * load(y + i);
    float sum = sum_of(total);
    for (; i < count; i++) sum += x[i] * y[i];
    return sum;
}

/* 64-byte aligned memory for so many floats, or NULL. */
INLINE float *room(long floats) {
    void *memory = NULL;
    return posix_memalign(&memory, 64, floats * sizeof(float) + 64) ? NULL : memory;
}

#endif
