/* Few rows times weights of 16, 8 or 4 bits, at the pace at which weights can be read. Weights lie in tiles of 16 outputs,
   in the order in which they are used. For 4 and 8 bits rows become 8 bits too, 32 inputs sharing a scale, and are
   multiplied in whole numbers, four inputs to an instruction (AVX512_VNNI); for bfloat16, two (AVX512_BF16).
   Called by shared.engine.native; threads are torch's. */

#include "numbers.h"

#define GROUP 32 /* inputs that share a scale, of rows and of 4-bit weights */
#define ROWS 8   /* that one pass over the weights serves */

int multiplies_bytes(void) {
#ifdef __AVX512VNNI__
    return 1;
#else
    return 0;
#endif
}

#ifdef __AVX512VNNI__

/* A row as x = number * scale, and what the numbers of each group sum to, times its scale. */
INLINE void quantized(const void *x, long width, int8_t *numbers, float *scales, float *sums, int half) {
    for (long group = 0; group < width / GROUP; group++) {
        __m512 low = (__m512)load(x, group * GROUP, half), high = (__m512)load(x, group * GROUP + LANES, half);
        float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
        __m512 factor = _mm512_set1_ps(most > 0 ? 127 / most : 0);
        __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(low, factor)), b = _mm512_cvtps_epi32(_mm512_mul_ps(high, factor));
        _mm_storeu_si128((__m128i *)(numbers + group * GROUP), _mm512_cvtepi32_epi8(a));
        _mm_storeu_si128((__m128i *)(numbers + group * GROUP + LANES), _mm512_cvtepi32_epi8(b));
        scales[group] = most / 127;
        sums[group] = _mm512_reduce_add_epi32(_mm512_add_epi32(a, b)) * scales[group];
    }
}

typedef struct {
    const int8_t *numbers; /* [rows, in] */
    const float *scales, *sums; /* [rows, groups] */
    const uint8_t *weights; /* of 16 outputs: see numbers_of */
    const void *factors; /* 4 bits: bfloat16 [groups, 2, 16], scale and offset; 8 bits: bfloat16 [16] */
    long width;
} Tile;

INLINE __m512i four(const int8_t *numbers) {
    int32_t word;
    memcpy(&word, numbers, 4);
    return _mm512_set1_epi32(word);
}

/* 16 outputs of some rows; a weight is (q - 8) * scale + offset, and byte [group][j][output][i] of the weights holds
   inputs 4 j + i (low) and 16 + 4 j + i (high) of the group */
INLINE void multiplied4(const Tile *t, long row, int rows, lanes *out) {
    long groups = t->width / GROUP;
    for (int r = 0; r < rows; r++) out[r] = (lanes){0};
    for (long group = 0; group < groups; group++) {
        __m512i sums[ROWS];
        for (int r = 0; r < rows; r++) sums[r] = _mm512_setzero_si512();
        for (int j = 0; j < 4; j++) {
            __builtin_prefetch(t->weights + t->width * 8 + (group * 4 + j) * 64); /* the next tile, as below */
            __m512i both = _mm512_loadu_si512(t->weights + (group * 4 + j) * 64), mask = _mm512_set1_epi8(15);
            __m512i low = _mm512_and_si512(both, mask), high = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
            for (int r = 0; r < rows; r++) {
                const int8_t *x = t->numbers + (row + r) * t->width + group * GROUP + 4 * j;
                sums[r] = _mm512_dpbusd_epi32(sums[r], low, four(x));
                sums[r] = _mm512_dpbusd_epi32(sums[r], high, four(x + 16));
            }
        }
        lanes scale = load(t->factors, group * 2 * LANES, 1), offset = load(t->factors, (group * 2 + 1) * LANES, 1) - 8 * scale;
        for (int r = 0; r < rows; r++) {
            long place = (row + r) * groups + group;
            out[r] += (lanes)_mm512_cvtepi32_ps(sums[r]) * t->scales[place] * scale + offset * t->sums[place];
        }
    }
}

/* the same with bytes q + 128, [group][j][output][i] for input 4 j + i, and one scale per output */
INLINE void multiplied8(const Tile *t, long row, int rows, lanes *out) {
    long groups = t->width / GROUP;
    for (int r = 0; r < rows; r++) out[r] = (lanes){0};
    for (long group = 0; group < groups; group++) {
        __m512i sums[ROWS];
        for (int r = 0; r < rows; r++) sums[r] = _mm512_setzero_si512();
        for (int j = 0; j < 8; j++) {
            __builtin_prefetch(t->weights + t->width * 16 + (group * 8 + j) * 64);
            __m512i weights = _mm512_loadu_si512(t->weights + (group * 8 + j) * 64);
            for (int r = 0; r < rows; r++)
                sums[r] = _mm512_dpbusd_epi32(sums[r], weights, four(t->numbers + (row + r) * t->width + group * GROUP + 4 * j));
        }
        for (int r = 0; r < rows; r++) {
            long place = (row + r) * groups + group;
            out[r] += (lanes)_mm512_cvtepi32_ps(sums[r]) * t->scales[place] - 128 * t->sums[place];
        }
    }
    for (int r = 0; r < rows; r++) out[r] *= load(t->factors, 0, 1);
}

#ifdef __AVX512BF16__
/* words [pair of inputs][output]; the rows are taken as they are. Two sums each, because one would wait for itself. */
INLINE void multiplied16(const Tile *t, long row, int rows, lanes *out) {
    __m512 even[ROWS], odd[ROWS];
    for (int r = 0; r < rows; r++) even[r] = odd[r] = _mm512_setzero_ps();
    for (long pair = 0; pair < t->width / 2; pair += 2) {
        __m512bh a = (__m512bh)_mm512_loadu_si512(t->weights + pair * 64), b = (__m512bh)_mm512_loadu_si512(t->weights + (pair + 1) * 64);
        __builtin_prefetch(t->weights + t->width * 32 + pair * 64); /* the next tile: rows leave no time to wait for it */
        __builtin_prefetch(t->weights + t->width * 32 + (pair + 1) * 64);
        for (int r = 0; r < rows; r++) {
            const int8_t *x = t->numbers + ((row + r) * t->width + 2 * pair) * 2;
            even[r] = _mm512_dpbf16_ps(even[r], a, (__m512bh)four(x));
            odd[r] = _mm512_dpbf16_ps(odd[r], b, (__m512bh)four(x + 4));
        }
    }
    for (int r = 0; r < rows; r++) out[r] = (lanes)_mm512_add_ps(even[r], odd[r]);
}
#endif

INLINE void multiplied_by(int bits, const Tile *t, long row, int rows, lanes *out) {
    if (bits == 4) multiplied4(t, row, rows, out);
    if (bits == 8) multiplied8(t, row, rows, out);
#ifdef __AVX512BF16__
    if (bits == 16) multiplied16(t, row, rows, out);
#endif
}

INLINE void all_rows(int bits, const Tile *t, long rows, void *out, long stride, int half) {
    lanes sums[ROWS];
    for (long row = 0, count; row < rows; row += count) {
        long left = rows - row;
        count = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1; /* constants, so that the sums stay in registers */
        if (count == 8) multiplied_by(bits, t, row, 8, sums);
        else if (count == 4) multiplied_by(bits, t, row, 4, sums);
        else if (count == 2) multiplied_by(bits, t, row, 2, sums);
        else multiplied_by(bits, t, row, 1, sums);
        for (long r = 0; r < count; r++) store(out, (row + r) * stride, sums[r], half);
    }
}

/* out [rows, outputs] = x [rows, width] times weights; width a multiple of 32, outputs of 16. scratch, unless the weights
   have 16 bits: width bytes and width / 16 floats a row. */
void multiply(void *out, const void *x, const uint8_t *weights, const void *factors, int8_t *scratch, long rows,
              long width, long outputs, int bits, int half) {
    long groups = width / GROUP, tile_bytes = width * bits * 2, tile_factors = bits == 4 ? groups * 2 * LANES : LANES;
    float *scales = (float *)(scratch + rows * width), *sums = scales + rows * groups;
    for (long row = 0; row < rows && bits < 16; row++)
        BOTH(quantized, at(x, row * width, half), width, scratch + row * width, scales + row * groups, sums + row * groups);
#pragma omp parallel for schedule(static)
    for (long tile = 0; tile < outputs / LANES; tile++) {
        Tile t = {bits < 16 ? scratch : x, scales, sums, weights + tile * tile_bytes, 0, width};
        void *into = at(out, tile * LANES, half);
        if (bits < 16) t.factors = at(factors, tile * tile_factors, 1);
        if (bits == 4) BOTH(all_rows, 4, &t, rows, into, outputs);
        else if (bits == 8) BOTH(all_rows, 8, &t, rows, into, outputs);
        else all_rows(16, &t, rows, into, outputs, 1);
    }
}

#else
void multiply(void) {}
#endif
