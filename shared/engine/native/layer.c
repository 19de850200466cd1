/* What stands between the matrix products of a decoder layer: norms, rotary positions, gates.
   Called by shared.engine.native; threads are those of torch's OpenMP. */

#include "numbers.h"

int multiplies_pairs(void) {
#ifdef __AVX512BF16__
    return 1;
#else
    return 0;
#endif
}

#define FEW 8 /* rows that one thread does sooner than it wakes another */

/* out = weight * x / sqrt(mean(x^2) + eps), rounded before the product as transformers does */
INLINE void normed(void *out, const void *x, const void *weight, long n, float eps, int half) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (long i = 0; i < n; i++) squares += get(x, i, half) * get(x, i, half);
    float share = 1 / sqrtf(squares / n + eps);
    for (long i = 0; i < n; i++) put(out, i, get(weight, i, half) * rounded(get(x, i, half) * share, half), half);
}

INLINE void row_normed(void *out, void *x, const void *add, const void *weight, long row, long n, float eps, int half) {
    void *own = at(x, row * n, half);
    if (add)
        for (long i = 0; i < n; i++) put(own, i, get(own, i, half) + get(add, row * n + i, half), half);
    normed(at(out, row * n, half), own, weight, n, eps, half);
}

/* x += add (unless it is NULL), then out = norm(x); rows of n */
void add_norm(void *out, void *x, const void *add, const void *weight, long rows, long n, float eps, int half) {
#pragma omp parallel for if (rows > FEW)
    for (long row = 0; row < rows; row++) BOTH(row_normed, out, x, add, weight, row, n, eps);
}

INLINE void row_gated(void *out, const void *x, long row, long n, int half) {
    for (long i = 0; i < n; i += LANES) {
        lanes gate = load(x, 2 * row * n + i, half), value = load(x, (2 * row + 1) * n + i, half);
        store(out, row * n + i, gate / (1 + exponential(-gate)) * value, half);
    }
}

/* out[row][i] = silu(x[row][i]) * x[row][n + i]; n is a multiple of 16 */
void gate(void *out, const void *x, long rows, long n, int half) {
#pragma omp parallel for if (rows > FEW)
    for (long row = 0; row < rows; row++) BOTH(row_gated, out, x, row, n);
}

typedef struct {
    const void *query_norm, *key_norm; /* [head_dim], or NULL */
    float eps;
    const float *cosines, *sines; /* [positions, head_dim / 2] */
    const int64_t *positions, *slots;
    long tokens, heads, kv_heads, head_dim;
} Rotation;

INLINE void rotated(void *x, const void *norm, const Rotation *r, long token, int half) {
    long middle = r->head_dim / 2;
    const float *cosine = r->cosines + r->positions[token] * middle, *sine = r->sines + r->positions[token] * middle;
    if (norm) normed(x, x, norm, r->head_dim, r->eps, half);
    for (long i = 0; i < middle; i++) {
        float a = get(x, i, half), b = get(x, middle + i, half);
        put(x, i, a * cosine[i] - b * sine[i], half);
        put(x, middle + i, b * cosine[i] + a * sine[i], half);
    }
}

INLINE void token_rotated(const Rotation *r, void *qkv, void *keys, void *values, long token, int half) {
    long of_keys = r->kv_heads * r->head_dim, d = r->head_dim;
    void *query = at(qkv, token * (r->heads + 2 * r->kv_heads) * d, half), *key = at(query, r->heads * d, half);
    for (long head = 0; head < r->heads; head++) rotated(at(query, head * d, half), r->query_norm, r, token, half);
    for (long head = 0; head < r->kv_heads; head++) rotated(at(key, head * d, half), r->key_norm, r, token, half);
    memcpy(at(keys, r->slots[token] * of_keys, half), key, of_keys * (half ? 2 : 4));
    memcpy(at(values, r->slots[token] * of_keys, half), at(key, of_keys, half), of_keys * (half ? 2 : 4));
}

/* qkv [tokens, (heads + 2 kv_heads) * head_dim]: queries rotated in place; keys rotated, and with the values copied to
   their slots in the pages */
void rotate(const Rotation *r, void *qkv, void *keys, void *values, int half) {
#pragma omp parallel for if (r->tokens > FEW)
    for (long token = 0; token < r->tokens; token++) BOTH(token_rotated, r, qkv, keys, values, token);
}
