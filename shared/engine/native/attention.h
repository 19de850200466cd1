/* What both kinds of attention share: of pieces of prompts (attention.c) and of single tokens (decode.c). */

#pragma once
#include "numbers.h"

#define STRIP 64 /* contexts count as multiples of this: 4 vectors */
#define HIDDEN -1e30f

INLINE long least(long a, long b) { return a < b ? a : b; }
INLINE long up_to(long n, long unit) { return (n + unit - 1) / unit * unit; }

typedef struct {
    const void *keys, *values; /* one layer's pages, [blocks, block_size, kv_heads, head_dim] */
    const int64_t *table;      /* blocks of the sequence */
    long context, block_size, kv_heads, head_dim;
} Sequence;

typedef struct {
    void *out;         /* [tokens, heads, head_dim] */
    const void *query; /* rows of query_stride elements, heads * head_dim of them used */
    long query_stride, heads, window;
    float scale;
} Queries;

/* The same in every layer of a step. Row i of the step is a sequence of which tokens [first_tokens[i],
   first_tokens[i + 1]) of the packed step stand at positions from starts[i] on. */
typedef struct {
    long count, heads, kv_heads, head_dim, block_size, longest;
    const int64_t *first_tokens, *starts, *tables, *table_starts;
    int32_t *scratch; /* keys and values of one head of the longest sequence and a tile of scores, or what a decode needs */
    long scratch_words; /* of it for each thread */
} Step;

INLINE Sequence sequence_of(const Step *step, long i, const void *keys, const void *values) {
    long context = step->starts[i] + step->first_tokens[i + 1] - step->first_tokens[i];
    return (Sequence){keys, values, step->tables + step->table_starts[i], context,
                      step->block_size, step->kv_heads, step->head_dim};
}

/* sum + a * b, of words: floats or pairs of bfloat16 */
INLINE lanes paired(lanes sum, lanes a, lanes b, int half) {
#ifdef __AVX512BF16__
    if (half) return (lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(__m512)a, (__m512bh)(__m512)b);
#endif
    return sum + a * b;
}

INLINE lanes multiplied(lanes sum, int32_t a, lanes b, int half) {
    return paired(sum, (lanes)((words){0} + a), b, half);
}

/* Where `count` positions of a head lie in the pages, in elements; behind the end of the sequence, its last. */
INLINE void places(const Sequence *s, long head, long from, long count, long *found) {
    long block = from / s->block_size, offset = from % s->block_size, width = s->kv_heads * s->head_dim;
    for (long i = 0; i < count; i++) {
        found[i] = from + i < s->context ? (s->table[block] * s->block_size + offset) * width + head * s->head_dim : found[i - 1];
        if (++offset == s->block_size) offset = 0, block++;
    }
}

/* Scores [from, to) become weights that sum to 1 / the result; what lies outside within [begin, end) becomes 0. */
INLINE float softmax(float *scores, long begin, long from, long to, long end, float scale, int half) {
    for (long i = begin; i < from; i++) scores[i] = HIDDEN;
    for (long i = to; i < end; i++) scores[i] = HIDDEN;
    lanes most = *(lanes *)(scores + begin), sum = {0};
    for (long i = begin; i < end; i += LANES) most = greater(most, *(lanes *)(scores + i));
    float top = most[0], total = 0;
    for (int i = 1; i < LANES; i++) top = most[i] > top ? most[i] : top;
    for (long i = begin; i < end; i += LANES) {
        lanes weight = exponential((*(lanes *)(scores + i) - top) * scale);
        sum += weight;
        store(scores, i, weight, half); /* pairs of bfloat16 lie closer together than the scores did */
    }
    for (int i = 0; i < LANES; i++) total += sum[i];
    return 1 / total;
}

/* Of the rows that are single tokens; called by every thread of a team. */
void decodes(const Step *step, const Queries *q, const void *keys, const void *values, int32_t *scratch, int half);
