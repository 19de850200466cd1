/* Few rows times weights of 4 or 8 bits: rows become 8 bits too, 32 inputs sharing a scale, and are multiplied in whole
   numbers, four inputs to an instruction (AVX512_VNNI). Called by shared.engine.native; threads are torch's. */

#include "numbers.h"

#define GROUP 32 /* inputs that share a scale, of rows and of 4-bit weights */
#define ROWS 4   /* that one pass over the weights serves */

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

INLINE void multiplied_by(int bits, const Tile *t, long row, int rows, lanes *out) {
    if (bits == 4) multiplied4(t, row, rows, out);
    else multiplied8(t, row, rows, out);
}

INLINE void all_rows(int bits, const Tile *t, long rows, void *out, long stride, int half) {
    lanes sums[ROWS];
    for (long row = 0; row < rows; row += ROWS) {
        long count = rows - row < ROWS ? rows - row : ROWS;
        switch (count) { /* constants, so that the sums stay in registers */
            case 1: multiplied_by(bits, t, row, 1, sums); break;
            case 2: multiplied_by(bits, t, row, 2, sums); break;
            case 3: multiplied_by(bits, t, row, 3, sums); break;
            default: multiplied_by(bits, t, row, 4, sums);
        }
        for (long r = 0; r < count; r++) store(out, (row + r) * stride, sums[r], half);
    }
}

/* out [rows, outputs] = x [rows, width] times weights; width a multiple of 32, outputs of 16. scratch: width bytes and
   width / 16 floats a row. */
void multiply(void *out, const void *x, const uint8_t *weights, const void *factors, int8_t *scratch, long rows,
              long width, long outputs, int bits, int half) {
    long groups = width / GROUP, tile_bytes = width * bits * 2, tile_factors = bits == 4 ? groups * 2 * LANES : LANES;
    float *scales = (float *)(scratch + rows * width), *sums = scales + rows * groups;
    for (long row = 0; row < rows; row++)
        BOTH(quantized, at(x, row * width, half), width, scratch + row * width, scales + row * groups, sums + row * groups);
#pragma omp parallel for schedule(static)
    for (long tile = 0; tile < outputs / LANES; tile++) {
        Tile t = {scratch, scales, sums, weights + tile * tile_bytes, at(factors, tile * tile_factors, 1), width};
        void *into = at(out, tile * LANES, half);
        if (bits == 4) BOTH(all_rows, 4, &t, rows, into, outputs);
        else BOTH(all_rows, 8, &t, rows, into, outputs);
    }
}

#else
void multiply(void) {}
#endif
