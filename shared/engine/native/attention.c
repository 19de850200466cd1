/* Attention over KV pages on a CPU: softmax(q k^T) v, causal, grouped heads, with or without a sliding window.

   Keys and values of one head are first packed for the matrix kernel, which counts in words of 32 bits, one float or a
   pair of bfloat16, so that both kinds share their code; then tiles of rows follow, whose scores stay in the cache.
   Called by shared.engine.native, which says what the arguments are; threads are those of torch's OpenMP. */

#include <omp.h>
#include "attention.h"

#define TILE 6 /* rows of the matrix kernel: with 4 vectors of columns, 24 sums in registers */

/* ---- the matrix kernel ----------------------------------------------------------------------------------------- */

/* c[row][0..16 width) = sum over steps of a[row][step] * b[step][0..16 width) */
INLINE void product(int rows, int width, long steps, int32_t *const *a, const int32_t *b, long b_stride,
                    float *const *c, int half) {
    lanes sums[TILE][4] = {{{0}}};
    for (long step = 0; step < steps; step++) {
        lanes columns[4];
        for (int i = 0; i < width; i++) columns[i] = *(const lanes *)(b + step * b_stride + LANES * i);
        for (int row = 0; row < rows; row++)
            for (int i = 0; i < width; i++) sums[row][i] = multiplied(sums[row][i], a[row][step], columns[i], half);
    }
    for (int row = 0; row < rows; row++)
        for (int i = 0; i < width; i++) *(lanes *)(c[row] + LANES * i) = sums[row][i];
}

INLINE void product_of(int rows, int width, long steps, int32_t *const *a, const int32_t *b, long b_stride,
                       float *const *c, int half) {
    switch (rows) { /* constants, so that the sums stay in registers */
        case 1: product(1, width, steps, a, b, b_stride, c, half); break;
        case 2: product(2, width, steps, a, b, b_stride, c, half); break;
        case 3: product(3, width, steps, a, b, b_stride, c, half); break;
        case 4: product(4, width, steps, a, b, b_stride, c, half); break;
        case 5: product(5, width, steps, a, b, b_stride, c, half); break;
        default: product(6, width, steps, a, b, b_stride, c, half);
    }
}

/* ---- packing keys and values ----------------------------------------------------------------------------------- */

#ifdef __AVX512F__
INLINE void transposed(const int32_t *const *rows, long column, int32_t *out, long out_stride) {
    __m512i r[16], t[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(rows[i] + column);
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 16; j += 8) {
            t[j + i] = _mm512_shuffle_i32x4(r[j + i], r[j + 4 + i], 0x88);
            t[j + 4 + i] = _mm512_shuffle_i32x4(r[j + i], r[j + 4 + i], 0xDD);
        }
    for (int i = 0; i < 8; i++) {
        _mm512_storeu_si512(out + i * out_stride, _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88));
        _mm512_storeu_si512(out + (8 + i) * out_stride, _mm512_shuffle_i32x4(t[i], t[8 + i], 0xDD));
    }
}
#endif

/* 16 keys, given by row, into 16 columns of a strip: out[step][0..16) */
INLINE void packed_keys(const int32_t *const *rows, long steps, int32_t *out) {
    long step = 0;
#ifdef __AVX512F__
    for (; step + 16 <= steps; step += 16) transposed(rows, step, out + step * STRIP, STRIP);
#endif
    for (; step < steps; step++)
        for (int i = 0; i < LANES; i++) out[step * STRIP + i] = rows[i][step];
}

/* `count` positions of one head: keys as [step][STRIP], values as [pair or position][head_dim] words, zeros behind. */
INLINE void pack(const Sequence *s, const long *found, long count, int32_t *keys, int32_t *values, int half) {
    long words_of_key = s->head_dim / (half ? 2 : 1);
    for (long first = 0; first < least(count, STRIP); first += LANES) {
        const int32_t *rows[LANES];
        for (long i = 0; i < LANES; i++) rows[i] = at(s->keys, found[first + i], half);
        packed_keys(rows, words_of_key, keys + first);
    }
    for (long i = 0; i < STRIP; i += half ? 2 : 1) {
        int32_t *out = values + i / (half ? 2 : 1) * s->head_dim;
        const uint16_t *even = at(s->values, found[i], half), *odd = at(s->values, found[i + half], half);
        if (i >= count) {
            memset(out, 0, 4 * s->head_dim);
        } else if (!half) {
            memcpy(out, even, 4 * s->head_dim);
        } else if (i + 1 < count) {
            for (long d = 0; d < s->head_dim; d++) out[d] = even[d] | (uint32_t)odd[d] << 16;
        } else {
            for (long d = 0; d < s->head_dim; d++) out[d] = even[d];
        }
    }
}

/* ---- attention ------------------------------------------------------------------------------------------------- */

/* One tile of rows of one KV head: rows count (token, head of the group), tokens from first_token on, and the first of
   these stands at position `start`. */
INLINE void attend_tile(const Queries *q, const Sequence *s, long first_token, long start, long row, long rows,
                        long head, const int32_t *keys, const int32_t *values, float *scores, int half) {
    long group = q->heads / s->kv_heads, per_word = half ? 2 : 1, steps = s->head_dim / per_word;
    long from = start + row / group + 1 - q->window, to = start + (row + rows - 1) / group + 1;
    long begin = from > 0 ? from / STRIP * STRIP : 0, end = up_to(to, STRIP), stride = up_to(s->context, STRIP);
    int32_t *queries[TILE];
    float *sums[TILE], share[TILE];
    for (long i = 0; i < rows; i++) {
        long token = first_token + (row + i) / group;
        queries[i] = at(q->query, token * q->query_stride + (head * group + (row + i) % group) * s->head_dim, half);
    }
    for (long strip = begin; strip < end; strip += STRIP) {
        for (long i = 0; i < rows; i++) sums[i] = scores + i * stride + strip;
        product_of(rows, 4, steps, queries, keys + strip * steps, STRIP, sums, half);
    }
    for (long i = 0; i < rows; i++) {
        long limit = start + (row + i) / group + 1;
        share[i] = softmax(scores + i * stride, begin, limit > q->window ? limit - q->window : 0, limit, end, q->scale, half);
        queries[i] = (int32_t *)(scores + i * stride) + begin / per_word;
    }
    float result[TILE][STRIP];
    for (long column = 0; column < s->head_dim; column += STRIP) {
        long width = least(STRIP, s->head_dim - column);
        const int32_t *from_values = values + begin / per_word * s->head_dim + column;
        if (width == STRIP) {
            for (long i = 0; i < rows; i++) sums[i] = result[i];
            product_of(rows, 4, up_to(to - begin, per_word) / per_word, queries, from_values, s->head_dim, sums, half);
        } else
            for (long part = 0; part < width; part += LANES) {
                for (long i = 0; i < rows; i++) sums[i] = result[i] + part;
                product_of(rows, 1, up_to(to - begin, per_word) / per_word, queries, from_values + part, s->head_dim, sums, half);
            }
        for (long i = 0; i < rows; i++) {
            long token = first_token + (row + i) / group, first = (token * q->heads + head * group + (row + i) % group) * s->head_dim;
            for (long d = 0; d < width; d++) put(q->out, first + column + d, result[i][d] * share[i], half);
        }
    }
}

static void attend(const Step *step, const Queries *q, const void *keys, const void *values, int half) {
    long longest = up_to(step->longest, STRIP), words_of_key = step->head_dim / (half ? 2 : 1);
    long part = longest * words_of_key, area = step->scratch_words, group = step->heads / step->kv_heads;
#pragma omp parallel
    {
        int32_t *mine = step->scratch + omp_get_thread_num() * area;
        float *scores = (float *)(mine + 2 * part);
        decodes(step, q, keys, values, mine, half);
        for (long i = 0; i < step->count; i++) { /* pieces of prompts: the threads share each head */
            long first = step->first_tokens[i], rows = (step->first_tokens[i + 1] - first) * group;
            if (rows == group) continue;
            Sequence s = sequence_of(step, i, keys, values);
            int32_t *shared = step->scratch;
            for (long head = 0; head < step->kv_heads; head++) {
#pragma omp barrier
#pragma omp for schedule(static)
                for (long from = 0; from < s.context; from += STRIP) {
                    long here[STRIP];
                    places(&s, head, from, STRIP, here);
                    BOTH(pack, &s, here, s.context - from, shared + from * words_of_key, shared + part + from * words_of_key);
                }
#pragma omp for schedule(dynamic, 4)
                for (long row = 0; row < rows; row += TILE)
                    BOTH(attend_tile, q, &s, first, step->starts[i], row, least(TILE, rows - row), head, shared, shared + part, scores);
            }
        }
    }
}

void attention(const Step *step, void *out, const void *query, long query_stride, const void *keys, const void *values,
               long window, float scale, int half) {
    Queries queries = {out, query, query_stride, step->heads, window, scale};
    attend(step, &queries, keys, values, half);
}
