/* Attention of single tokens over KV pages. Keys and values are read once, as they lie, by all rows of a head; the
   heads of a sequence go together from block to block, so that memory is read in one direction. */

#include <omp.h>
#include "attention.h"

#define ROWS 4       /* heads of one KV head that are computed at a time */
#define MOST_AHEAD 4 /* vectors of positions whose lines are asked for early */

_Static_assert(LANES * MOST_AHEAD <= STRIP, "the scratch that AttentionStep allots has places for one strip more");

INLINE lanes words_at(const int32_t *from, long count) { /* zeros behind */
    lanes found = {0};
    if (count >= LANES) return *(const lanes *)from;
    memcpy(&found, from, 4 * count);
    return found;
}

/* lane i: the sum of all lanes of sums[i] */
INLINE lanes totals(const lanes *sums) {
#ifdef __AVX512F__
    __m512 fours[4];
    for (int i = 0; i < 4; i++) {
        __m512 pairs[2];
        for (int j = 0; j < 2; j++) {
            __m512 a = (__m512)sums[4 * i + 2 * j], b = (__m512)sums[4 * i + 2 * j + 1];
            pairs[j] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        }
        __m512d a = _mm512_castps_pd(pairs[0]), b = _mm512_castps_pd(pairs[1]);
        fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    __m512 halves[2];
    for (int i = 0; i < 2; i++)
        halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0x44),
                                  _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0xEE));
    return (lanes)_mm512_add_ps(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88),
                                _mm512_shuffle_f32x4(halves[0], halves[1], 0xDD));
#else
    lanes result = {0};
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < LANES; j++) result[i] += sums[i][j];
    return result;
#endif
}

/* scores[row * stride + 0..16): query of each row times 16 keys */
INLINE void scored(int rows, const int32_t *const *query, const int32_t *const *keys,
                   const int32_t *const *soon, long steps, float *scores, long stride, int half) {
    for (int row = 0; row < rows; row++) {
        lanes sums[LANES] = {{0}};
        long step = 0;
        for (; step + LANES <= steps; step += LANES) {
            lanes factor = *(const lanes *)(query[row] + step);
            for (int i = 0; i < LANES; i++) {
                sums[i] = paired(sums[i], factor, *(const lanes *)(keys[i] + step), half);
                if (row == 0) __builtin_prefetch(soon[i] + step);
            }
        }
        if (step < steps) {
            lanes factor = words_at(query[row] + step, steps - step);
            for (int i = 0; i < LANES; i++) sums[i] = paired(sums[i], factor, words_at(keys[i] + step, steps - step), half);
        }
        *(lanes *)(scores + row * stride) = totals(sums);
    }
}

/* 16 width columns of a step: of one position, or of two whose elements take turns. For the latter, two vectors hold
   elements 0-3, 8-11, ... and 4-7, 12-15, ... of 32; see `in_order`. */
INLINE void columns_of(lanes *columns, const void *even, const void *odd, int width, int half) {
#ifdef __AVX512BF16__
    if (half && width == 1) {
        __m512i a = _mm512_cvtepu16_epi32(_mm256_loadu_si256(even)), b = _mm512_cvtepu16_epi32(_mm256_loadu_si256(odd));
        columns[0] = (lanes)_mm512_or_si512(a, _mm512_slli_epi32(b, 16));
        return;
    }
    if (half) {
        for (int i = 0; i < width; i += 2) {
            __m512i a = _mm512_loadu_si512(at(even, LANES * i, 1)), b = _mm512_loadu_si512(at(odd, LANES * i, 1));
            columns[i] = (lanes)_mm512_unpacklo_epi16(a, b);
            columns[i + 1] = (lanes)_mm512_unpackhi_epi16(a, b);
        }
        return;
    }
#endif
    for (int i = 0; i < width; i++) columns[i] = *(const lanes *)at(even, LANES * i, 0);
}

INLINE void in_order(lanes *columns, int width, int half) {
#ifdef __AVX512BF16__
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    for (int i = 0; half && i + 1 < width; i += 2) {
        __m512 a = (__m512)columns[i], b = (__m512)columns[i + 1];
        columns[i] = (lanes)_mm512_permutex2var_ps(a, low, b);
        columns[i + 1] = (lanes)_mm512_permutex2var_ps(a, _mm512_add_epi32(low, _mm512_set1_epi32(8)), b);
    }
#endif
}

/* sums[row][0..16 width) += over 16 positions: weight * value */
INLINE void weighed(int rows, int width, const int32_t *weights, long stride, const void *values, const long *here,
                    const long *next, float *sums, long head_dim, int half) {
    lanes now[ROWS][4];
    for (int row = 0; row < rows; row++)
        for (int i = 0; i < width; i++) now[row][i] = *(const lanes *)(sums + row * head_dim + LANES * i);
    for (int step = 0; step < LANES / (half ? 2 : 1); step++) {
        lanes columns[4];
        int position = half ? 2 * step : step;
        columns_of(columns, at(values, here[position], half), at(values, here[position + half], half), width, half);
        for (int i = 0; i < width; i += half ? 2 : 1)
            for (int one = 0; one <= half; one++) __builtin_prefetch(at(values, next[position + one] + LANES * i, half));
        for (int row = 0; row < rows; row++)
            for (int i = 0; i < width; i++) now[row][i] = multiplied(now[row][i], weights[row * stride + step], columns[i], half);
    }
    for (int row = 0; row < rows; row++)
        for (int i = 0; i < width; i++) *(lanes *)(sums + row * head_dim + LANES * i) = now[row][i];
}

/* What one thread does at a time: heads [from_head, to_head) of one sequence. Rows count the query's heads. */
typedef struct {
    Sequence sequence;
    const Queries *queries;
    const void *query; /* [heads][head_dim] */
    long group, from_head, to_head, stride;
    long begin, ahead;    /* positions, multiples of 16: the first; from here to those whose lines are asked for */
    float *scores, *sums; /* [heads][stride], [heads][head_dim] */
} Job;

INLINE void keys_read(int rows, const Job *job, long head, long row, long from, const long *here, const long *next,
                      int half) {
    const Sequence *s = &job->sequence;
    const int32_t *keys[LANES], *soon[LANES], *query[ROWS];
    for (int i = 0; i < LANES; i++) {
        keys[i] = at(s->keys, here[i] + head * s->head_dim, half);
        soon[i] = at(s->keys, next[i] + head * s->head_dim, half);
    }
    for (int i = 0; i < rows; i++) query[i] = at(job->query, (row + i) * s->head_dim, half);
    scored(rows, query, keys, soon, s->head_dim / (half ? 2 : 1), job->scores + row * job->stride + from, job->stride, half);
}

INLINE void values_read(int rows, const Job *job, long head, long row, long from, const long *here, const long *next,
                        int half) {
    const Sequence *s = &job->sequence;
    const int32_t *weights = (const int32_t *)(job->scores + row * job->stride) + from / (half ? 2 : 1);
    for (long column = 0, width; column < s->head_dim; column += LANES * width) {
        const void *values = at(s->values, head * s->head_dim + column, half);
        float *sums = job->sums + row * s->head_dim + column;
        width = s->head_dim - column >= 4 * LANES ? 4 : s->head_dim - column >= 2 * LANES ? 2 : 1;
        switch (width) {
            case 4: weighed(rows, 4, weights, job->stride, values, here, next, sums, s->head_dim, half); break;
            case 2: weighed(rows, 2, weights, job->stride, values, here, next, sums, s->head_dim, half); break;
            default: weighed(rows, 1, weights, job->stride, values, here, next, sums, s->head_dim, half);
        }
    }
}

/* Blocks lie all over memory, where no processor sees them coming: while one is computed with, lines of the `next` are
   asked for, few at a time, since a burst of them would keep the processor waiting. */
#define EVERY(function)                                                                                   \
    for (long from = job->begin; from < s->context; from += LANES) {                                      \
        const long *here = found + from - job->begin, *next = here + job->ahead;                          \
        for (long head = job->from_head; head < job->to_head; head++)                                     \
            for (long row = head * job->group, end = row + job->group; row < end; row += ROWS)            \
                switch (least(ROWS, end - row)) { /* constants, so that the sums stay in registers */     \
                    case 1: function(1, job, head, row, from, here, next, half); break;                   \
                    case 2: function(2, job, head, row, from, here, next, half); break;                   \
                    case 3: function(3, job, head, row, from, here, next, half); break;                   \
                    default: function(4, job, head, row, from, here, next, half);                         \
                }                                                                                         \
    }

INLINE void attended(const Job *job, void *out, int half) {
    const Sequence *s = &job->sequence;
    long first = job->from_head * job->group, end = job->to_head * job->group, from = s->context - job->queries->window;
    long *found = (long *)(job->sums + job->queries->heads * s->head_dim);
    places(s, 0, job->begin, up_to(s->context - job->begin, LANES) + job->ahead, found);
    EVERY(keys_read)
    memset(job->sums + first * s->head_dim, 0, 4 * (end - first) * s->head_dim);
    float share[end - first];
    for (long row = first; row < end; row++)
        share[row - first] = softmax(job->scores + row * job->stride, job->begin, from > 0 ? from : 0, s->context,
                                     up_to(s->context, LANES), job->queries->scale, half);
    EVERY(values_read)
    for (long row = first; row < end; row++)
        for (long column = 0; column < s->head_dim; column += 2 * LANES) {
            int width = s->head_dim - column > LANES ? 2 : 1;
            lanes *sums = (lanes *)(job->sums + row * s->head_dim + column);
            in_order(sums, width, half);
            for (int i = 0; i < width; i++) store(out, row * s->head_dim + column + LANES * i, sums[i] * share[row - first], half);
        }
}

void decodes(const Step *step, const Queries *q, const void *keys, const void *values, int32_t *scratch, int half) {
    int threads = omp_get_num_threads(), scarce = threads > 1 && step->count < 2 * threads;
    long heads = scarce ? 1 : step->kv_heads, width = q->heads * step->head_dim;
    long parts = step->kv_heads / heads, stride = up_to(step->longest, STRIP), ahead = LANES * least(parts, MOST_AHEAD);
#pragma omp for schedule(dynamic) nowait
    for (long number = 0; number < step->count * parts; number++) {
        long i = number / parts, head = number % parts * heads, token = step->first_tokens[i];
        if (step->first_tokens[i + 1] - token > 1) continue;
        Sequence s = sequence_of(step, i, keys, values);
        long begin = s.context > q->window ? (s.context - q->window) / LANES * LANES : 0;
        Job job = {s, q, at(q->query, token * q->query_stride, half), q->heads / step->kv_heads, head, head + heads,
                   stride, begin, ahead, (float *)scratch, (float *)scratch + q->heads * stride};
        void *out = at(q->out, token * width, half);
        BOTH(attended, &job, out);
    }
}
