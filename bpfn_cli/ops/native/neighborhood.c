/* SPDX-License-Identifier: MIT
 *
 * The work on every neighbor of every point besides the matrix products: rows are gathered, activated, mixed, compared
 * and summed while they are in the cache. Neighbors are row numbers. The order of summation does not depend on the
 * number of threads, except where noted. Built twice, with REAL float and double.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_max_threads(void) { return 1; }
static int omp_get_thread_num(void) { return 0; }
#endif

#include "interface.h"

enum { BLOCK = 64 };               /* channels processed together */
enum { MOST_ROWS = 256 };          /* of k and of middle */
enum { COLUMNS = 4 };              /* combined at once */
enum { CHUNK_ELEMENTS = 1 << 18 }; /* neighbor gradients buffered before they are summed */
enum { LANES = 64 / sizeof(REAL), TILE = 2 * LANES };

/* 64 bytes at any address; a machine with shorter vectors uses several. */
typedef REAL Vector __attribute__((vector_size(64), aligned(sizeof(REAL)), may_alias));

typedef __typeof__(__builtin_choose_expr(sizeof(REAL) == 4, (int32_t)0, (int64_t)0)) Whole; /* as wide as a REAL */

/* ---- Products of a few rows with a matrix, without leaving the cache ---- */

enum { ROWS = 8, WIDE = TILE }; /* of a block of results, which stays in the registers of AVX-512 */

/* Whether the processor has those registers; with fewer, a library's products are faster. */
int64_t bpfn_fuses(void) {
#ifdef WIDE_PROCESSOR
    return __builtin_cpu_supports("x86-64-v4") ? WIDE : 0;
#else
    return 0;
#endif
}

/* panels (panels, middle, inner, WIDE) of a matrix (middle, inner, outputs), whose entries lie `steps` apart along each
 * axis; the last panel is filled up with zeros. Reads along the first axis first, as weights of a layer lie. */
int bpfn_pack(const REAL *matrix, int64_t middle, int64_t inner, int64_t outputs, int64_t middle_step,
              int64_t inner_step, int64_t output_step, REAL *panels) {
    int64_t number = (outputs + WIDE - 1) / WIDE;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t panel = 0; panel < number; panel++)
        for (int64_t c = 0; c < inner; c++)
            for (int64_t m = 0; m < middle; m++) {
                const REAL *from = matrix + c * inner_step + m * middle_step + panel * WIDE * output_step;
                REAL *to = panels + ((panel * middle + m) * inner + c) * WIDE;
                for (int64_t d = 0; d < WIDE; d++) to[d] = panel * WIDE + d < outputs ? from[d * output_step] : 0;
            }
    return 0;
}

/* sums (ROWS, WIDE) += left (ROWS, depth), its rows `step` apart, times right (depth, WIDE). */
static inline __attribute__((always_inline)) void add_block(const REAL *restrict left, int64_t step,
                                                            const REAL *restrict right, int64_t depth,
                                                            Vector sums[ROWS][2]) {
    for (int64_t c = 0; c < depth; c++) {
        Vector low = *(const Vector *)(right + c * WIDE), high = *(const Vector *)(right + c * WIDE + LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            sums[r][0] += left[r * step + c] * low;
            sums[r][1] += left[r * step + c] * high;
        }
    }
}

/* ---- max_j W LeakyReLU(own_i + other_j) ---- */

static inline void activate_sum(const REAL *restrict own, const REAL *restrict other, int64_t channels, REAL slope,
                                REAL *restrict result) {
    for (int64_t c = 0; c < channels; c++) {
        REAL sum = own[c] + other[c];
        result[c] = sum > 0 ? sum : sum * slope;
    }
}

VECTORIZED static void activate_row(const REAL *own, const REAL *other, const int64_t *neighbors, int64_t k,
                                    int64_t channels, REAL slope, REAL *result) {
    for (int64_t j = 0; j < k; j++) activate_sum(own, other + neighbors[j] * channels, channels, slope, result + j * channels);
}

/* result (rows, k, channels) = LeakyReLU(own (rows, channels) + other (any, channels) [neighbors (rows, k)]) */
int bpfn_activate(const REAL *own, const REAL *other, const int64_t *neighbors, int64_t rows, int64_t k,
                   int64_t channels, double slope, REAL *result) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++)
        activate_row(own + i * channels, other, neighbors + i * k, k, channels, (REAL)slope, result + i * k * channels);
    return 0;
}

/* Whether `value` replaces `best`: it is larger, or NaN, which is then kept. */
static inline int follows(REAL value, REAL best) { return (value > best) | (value != value); }

VECTORIZED static void largest_of_row(const REAL *restrict values, int64_t k, int64_t channels, REAL *restrict largest) {
    memcpy(largest, values, (size_t)channels * sizeof *largest);
    for (int64_t j = 1; j < k; j++)
        for (int64_t c = 0; c < channels; c++) {
            REAL value = values[j * channels + c];
            largest[c] = follows(value, largest[c]) ? value : largest[c];
        }
}

VECTORIZED static void argmax_of_row(const REAL *restrict values, int64_t k, int64_t channels, REAL *restrict largest,
                                     uint8_t *restrict argmax) {
    for (int64_t start = 0; start < channels; start += BLOCK) {
        int count = channels - start < BLOCK ? (int)(channels - start) : BLOCK;
        REAL best[BLOCK];
        int32_t where[BLOCK] = {0};
        memcpy(best, values + start, (size_t)count * sizeof *best);
        for (int32_t j = 1; j < k; j++) {
            const REAL *row = values + j * channels + start;
            for (int c = 0; c < count; c++) {
                where[c] = follows(row[c], best[c]) ? j : where[c];
                best[c] = follows(row[c], best[c]) ? row[c] : best[c];
            }
        }
        memcpy(largest + start, best, (size_t)count * sizeof *best);
        for (int c = 0; c < count; c++) argmax[start + c] = (uint8_t)where[c];
    }
}

/* largest (rows, channels) of values (rows, k, channels), and which of k <= 256 it was, unless `argmax` is NULL. */
int bpfn_largest(const REAL *values, int64_t rows, int64_t k, int64_t channels, REAL *largest, uint8_t *argmax) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const REAL *row = values + i * k * channels;
        if (argmax) argmax_of_row(row, k, channels, largest + i * channels, argmax + i * channels);
        else largest_of_row(row, k, channels, largest + i * channels);
    }
    return 0;
}

typedef struct {
    const REAL *own, *other, *panels; /* of W: (panels, channels, WIDE), padded with zeros */
    const int64_t *neighbors;
    int64_t k, channels, outputs;
    REAL slope;
} Maximum;

/* Lower bounds `best` (WIDE) of columns, raised to the largest of ROWS rows from number `first` on, and which it was. */
static inline void raise_to_block(const Vector sums[ROWS][2], int32_t first, REAL *restrict best, Whole *restrict where) {
    const REAL *values = (const REAL *)sums;
    for (int32_t r = 0; r < ROWS; r++)
        for (int c = 0; c < WIDE; c++) {
            REAL value = values[r * WIDE + c];
            where[c] = follows(value, best[c]) ? first + r : where[c];
            best[c] = follows(value, best[c]) ? value : best[c];
        }
}

/* Row i of the maximum. inner: scratch space (k up to whole blocks, channels). */
VECTORIZED static void maximum_row(const Maximum *of, int64_t i, REAL *restrict inner, REAL *restrict largest,
                                   uint8_t *restrict argmax) {
    int64_t channels = of->channels;
    int32_t padded = (int32_t)((of->k + ROWS - 1) / ROWS * ROWS);
    for (int64_t j = 0; j < padded; j++) { /* the last neighbor fills the last block, and changes nothing */
        int64_t neighbor = of->neighbors[i * of->k + (j < of->k ? j : of->k - 1)];
        activate_sum(of->own + i * channels, of->other + neighbor * channels, channels, of->slope, inner + j * channels);
    }
    for (int64_t start = 0; start < of->outputs; start += WIDE) {
        REAL best[WIDE];
        Whole where[WIDE];
        for (int c = 0; c < WIDE; c++) best[c] = -INFINITY, where[c] = 0;
        for (int32_t j = 0; j < padded; j += ROWS) {
            Vector sums[ROWS][2] = {{{0}}};
            add_block(inner + j * channels, channels, of->panels + start * channels, channels, sums);
            raise_to_block(sums, j, best, where);
        }
        int64_t count = of->outputs - start < WIDE ? of->outputs - start : WIDE;
        memcpy(largest + start, best, (size_t)count * sizeof *largest);
        if (argmax)
            for (int64_t c = 0; c < count; c++) /* after NaN, the last row of the padding has won */
                argmax[start + c] = (uint8_t)(where[c] < of->k ? where[c] : of->k - 1);
    }
}

/* largest (rows, outputs) of W LeakyReLU(own + other) over the neighbors, and which it was, unless `argmax` is NULL.
 * Returns 1 if memory runs out. */
int bpfn_propagate(const REAL *own, const REAL *other, const int64_t *neighbors, const REAL *panels, int64_t rows,
                   int64_t k, int64_t channels, int64_t outputs, double slope, REAL *largest, uint8_t *argmax) {
    const Maximum of = {own, other, panels, neighbors, k, channels, outputs, (REAL)slope};
    int64_t size = (k + ROWS - 1) / ROWS * ROWS * channels;
    REAL *inner = malloc((size_t)(omp_get_max_threads() * size) * sizeof(REAL));
    if (!inner) return 1;
#pragma omp parallel for schedule(dynamic, 16)
    for (int64_t i = 0; i < rows; i++)
        maximum_row(&of, i, inner + omp_get_thread_num() * size, largest + i * outputs,
                    argmax ? argmax + i * outputs : NULL);
    free(inner);
    return 0;
}

static inline void add_scaled(REAL scale, const REAL *restrict from, int64_t count, REAL *restrict to) {
    for (int64_t c = 0; c < count; c++) to[c] += scale * from[c];
}

/* Backward through the activation, whose sign gives the slope; the result is added to `sum`. */
static inline void activate_backward(const REAL *restrict activated, int64_t channels, REAL slope,
                                     REAL *restrict gradient, REAL *restrict sum) {
    for (int64_t c = 0; c < channels; c++) {
        REAL value = activated[c] > 0 ? gradient[c] : gradient[c] * slope;
        gradient[c] = value;
        sum[c] += value;
    }
}

typedef struct {
    const REAL *gradient, *own, *other, *weight;
    const int64_t *neighbors;
    const uint8_t *argmax;
    int64_t k, channels, outputs;
    REAL slope;
} Propagation;

/* Row i: its own gradient, those of its neighbors (k, channels), and its contribution to that of the weight. `inner`:
 * scratch space (k, channels). */
VECTORIZED static void propagate_row_backward(const Propagation *of, int64_t i, REAL *restrict inner,
                                              REAL *restrict own_gradient, REAL *restrict neighbor_gradient,
                                              REAL *restrict weight_gradient) {
    int64_t channels = of->channels;
    const uint8_t *argmax = of->argmax + i * of->outputs;
    const REAL *gradient = of->gradient + i * of->outputs;
    for (int64_t j = 0; j < of->k; j++)
        activate_sum(of->own + i * channels, of->other + of->neighbors[i * of->k + j] * channels, channels, of->slope,
                     inner + j * channels);
    memset(neighbor_gradient, 0, (size_t)(of->k * channels) * sizeof *neighbor_gradient);
    for (int64_t d = 0; d < of->outputs; d++) {
        int64_t j = argmax[d] * channels;
        add_scaled(gradient[d], inner + j, channels, weight_gradient + d * channels);
        add_scaled(gradient[d], of->weight + d * channels, channels, neighbor_gradient + j);
    }
    memset(own_gradient, 0, (size_t)channels * sizeof *own_gradient);
    for (int64_t j = 0; j < of->k; j++)
        activate_backward(inner + j * channels, channels, of->slope, neighbor_gradient + j * channels, own_gradient);
}

/* to[rows[i]] += from[i], (count, channels), in the channels first .. end - 1. */
VECTORIZED static void add_rows(const REAL *restrict from, const int64_t *restrict rows, int64_t count, int64_t channels,
                                int64_t first, int64_t end, REAL *restrict to) {
    for (int64_t i = 0; i < count; i++)
        add_scaled(1, from + i * channels + first, end - first, to + rows[i] * channels + first);
}

/* The same, by all threads of a parallel region, each for some of the channels: no two write to the same place. */
static void share_add_rows(const REAL *from, const int64_t *rows, int64_t count, int64_t channels, REAL *to) {
    int64_t vectors = (channels + 15) / 16, slices = omp_get_max_threads();
    if (slices > vectors) slices = vectors;
#pragma omp for schedule(static)
    for (int64_t slice = 0; slice < slices; slice++) {
        int64_t first = vectors * slice / slices * 16, end = vectors * (slice + 1) / slices * 16;
        add_rows(from, rows, count, channels, first, end < channels ? end : channels, to);
    }
}

/* Gradients of own (rows, channels), other (points, channels; initially zero) and weight (outputs, channels) from
 * `gradient` (rows, outputs) of the maximum. Only the neighbor of the maximum has one. That of the weight is summed
 * thread by thread. Returns 1 if memory runs out. */
int bpfn_propagate_backward(const REAL *gradient, const REAL *own, const REAL *other, const int64_t *neighbors,
                            const REAL *weight, const uint8_t *argmax, int64_t rows, int64_t k, int64_t channels,
                            int64_t outputs, double slope, REAL *own_gradient, REAL *other_gradient,
                            REAL *weight_gradient) {
    const Propagation of = {gradient, own, other, weight, neighbors, argmax, k, channels, outputs, (REAL)slope};
    int64_t chunk = 1 + CHUNK_ELEMENTS / (k * channels + 1), threads = omp_get_max_threads(), weights = outputs * channels;
    REAL *neighbor_gradient = malloc((size_t)(chunk * k * channels) * sizeof(REAL));
    REAL *inner = malloc((size_t)(threads * k * channels) * sizeof(REAL));
    REAL *of_threads = calloc((size_t)(threads * weights), sizeof(REAL));
    int failed = !neighbor_gradient || !inner || !of_threads;
    if (!failed) {
#pragma omp parallel
        for (int64_t start = 0; start < rows; start += chunk) {
            int64_t end = start + chunk < rows ? start + chunk : rows, thread = omp_get_thread_num();
#pragma omp for schedule(static)
            for (int64_t i = start; i < end; i++)
                propagate_row_backward(&of, i, inner + thread * k * channels, own_gradient + i * channels,
                                       neighbor_gradient + (i - start) * k * channels, of_threads + thread * weights);
            share_add_rows(neighbor_gradient, neighbors + start * k, (end - start) * k, channels, other_gradient);
        }
        memcpy(weight_gradient, of_threads, (size_t)weights * sizeof(REAL));
        for (int64_t thread = 1; thread < threads; thread++)
            for (int64_t c = 0; c < weights; c++) weight_gradient[c] += of_threads[thread * weights + c];
    }
    free(neighbor_gradient);
    free(inner);
    free(of_threads);
    return failed;
}

/* ---- sum_j weights[i, j, m] [offsets[i, j], features[j]] ---- */

/* to[c] (count of them) = sum over rows of scale[row row_step + c column_step] rows[row], `width` floats. */
static inline __attribute__((always_inline)) void combine_columns(const REAL *const *rows, int64_t number,
                                                                  const REAL *scale, int64_t row_step,
                                                                  int64_t column_step, const int count, int64_t width,
                                                                  REAL *to, int64_t to_step) {
    int64_t x = 0;
    for (; x + TILE <= width; x += TILE) {
        Vector sums[COLUMNS][2] = {{{0}}};
        for (int64_t row = 0; row < number; row++) {
            Vector low = *(const Vector *)(rows[row] + x), high = *(const Vector *)(rows[row] + x + LANES);
            const REAL *by = scale + row * row_step;
#pragma GCC unroll 4
            for (int c = 0; c < count; c++) {
                sums[c][0] += by[c * column_step] * low;
                sums[c][1] += by[c * column_step] * high;
            }
        }
#pragma GCC unroll 4
        for (int c = 0; c < count; c++) {
            *(Vector *)(to + c * to_step + x) = sums[c][0];
            *(Vector *)(to + c * to_step + x + LANES) = sums[c][1];
        }
    }
    if (x == width) return;
    for (int c = 0; c < count; c++) {
        memset(to + c * to_step + x, 0, (size_t)(width - x) * sizeof *to);
        for (int64_t row = 0; row < number; row++)
            add_scaled(scale[row * row_step + c * column_step], rows[row] + x, width - x, to + c * to_step + x);
    }
}

/* The same for any number of columns. */
static inline void combine(const REAL *const *rows, int64_t number, const REAL *scale, int64_t row_step,
                           int64_t column_step, int64_t columns, int64_t width, REAL *to, int64_t to_step) {
    int64_t c = 0;
    for (; c + COLUMNS <= columns; c += COLUMNS)
        combine_columns(rows, number, scale + c * column_step, row_step, column_step, COLUMNS, width, to + c * to_step,
                        to_step);
    for (; c < columns; c++)
        combine_columns(rows, number, scale + c * column_step, row_step, column_step, 1, width, to + c * to_step, to_step);
}

static inline __attribute__((always_inline)) REAL total(Vector v) {
    REAL sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int lane = 0; lane < LANES; lane++) sum += v[lane];
    return sum;
}

/* to[c] (count of them) = the scalar product of `row` and columns[c], `width` floats. */
static inline __attribute__((always_inline)) void project_columns(const REAL *restrict row, const REAL *const *columns,
                                                                  const int count, int64_t width, REAL *restrict to) {
    Vector sums[COLUMNS] = {{0}};
    int64_t x = 0;
    for (; x + LANES <= width; x += LANES) {
        Vector part = *(const Vector *)(row + x);
#pragma GCC unroll 4
        for (int c = 0; c < count; c++) sums[c] += part * *(const Vector *)(columns[c] + x);
    }
#pragma GCC unroll 4
    for (int c = 0; c < count; c++) to[c] = total(sums[c]);
    for (; x < width; x++)
        for (int c = 0; c < count; c++) to[c] += row[x] * columns[c][x];
}

static inline void project(const REAL *row, const REAL *const *columns, int64_t number, int64_t width, REAL *to) {
    int64_t c = 0;
    for (; c + COLUMNS <= number; c += COLUMNS) project_columns(row, columns + c, COLUMNS, width, to + c);
    for (; c < number; c++) project_columns(row, columns + c, 1, width, to + c);
}

typedef struct {
    const REAL *offsets, *features, *weights; /* (rows, k, 3), (points, channels), (rows, k, middle) */
    const int64_t *neighbors;                  /* (rows, k) */
    int64_t k, channels, middle;
} Mixing;

static inline void find_neighbors(const Mixing *of, int64_t i, const REAL **rows) {
    for (int64_t j = 0; j < of->k; j++) rows[j] = of->features + of->neighbors[i * of->k + j] * of->channels;
}

VECTORIZED static void mix_row(const Mixing *of, int64_t i, REAL *restrict mixed) {
    int64_t k = of->k, middle = of->middle, width = of->channels + 3;
    const REAL *rows[MOST_ROWS], *restrict weights = of->weights + i * k * middle;
    const REAL *restrict offsets = of->offsets + i * k * 3;
    find_neighbors(of, i, rows);
    combine(rows, k, weights, middle, 1, middle, of->channels, mixed + 3, width);
    REAL sums[3][MOST_ROWS] = {{0}};
    for (int64_t j = 0; j < k; j++)
        for (int axis = 0; axis < 3; axis++) add_scaled(offsets[j * 3 + axis], weights + j * middle, middle, sums[axis]);
    for (int64_t m = 0; m < middle; m++)
        for (int axis = 0; axis < 3; axis++) mixed[m * width + axis] = sums[axis][m];
}

/* mixed (rows, middle, 3 + channels); k, middle <= MOST_ROWS. */
int bpfn_mix(const REAL *offsets, const REAL *features, const REAL *weights, const int64_t *neighbors, int64_t rows,
             int64_t k, int64_t channels, int64_t middle, REAL *mixed) {
    const Mixing of = {offsets, features, weights, neighbors, k, channels, middle};
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) mix_row(&of, i, mixed + i * middle * (channels + 3));
    return 0;
}

enum { MOST_TILE_ROWS = 64, DEPTH = 512 }; /* rows mixed at once; products summed before the next block of results */

/* sums (count up to whole blocks, panels WIDE) of mixed (as many, depth) times panels (panels, depth, WIDE). */
VECTORIZED static void multiply_tile(const REAL *restrict mixed, int64_t count, int64_t depth,
                                     const REAL *restrict panels, int64_t number, REAL *restrict sums) {
    for (int64_t start = 0; start < depth; start += DEPTH) {
        int64_t size = depth - start < DEPTH ? depth - start : DEPTH;
        for (int64_t panel = 0; panel < number; panel++)
            for (int64_t row = 0; row < count; row += ROWS) {
                Vector block[ROWS][2] = {{{0}}};
                REAL *to = sums + row * number * WIDE + panel * WIDE;
                add_block(mixed + row * depth + start, depth, panels + (panel * depth + start) * WIDE, size, block);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; r++)
                    for (int half = 0; half < 2; half++) {
                        Vector *result = (Vector *)(to + r * number * WIDE + half * LANES);
                        if (start) block[r][half] += *result;
                        *result = block[r][half];
                    }
            }
    }
}

/* result (rows, outputs) = mixed (rows, middle (3 + channels)) times a matrix in panels (panels, middle (3 + channels),
 * WIDE), padded with zeros. Returns 1 if memory runs out. */
int bpfn_convolve(const REAL *offsets, const REAL *features, const REAL *weights, const int64_t *neighbors,
                  const REAL *panels, int64_t rows, int64_t k, int64_t channels, int64_t middle, int64_t outputs,
                  REAL *result) {
    const Mixing of = {offsets, features, weights, neighbors, k, channels, middle};
    int64_t threads = omp_get_max_threads(), depth = middle * (channels + 3), number = (outputs + WIDE - 1) / WIDE;
    int64_t tile = rows / (2 * threads) / ROWS * ROWS; /* several for each thread */
    tile = tile < ROWS ? ROWS : tile > MOST_TILE_ROWS ? MOST_TILE_ROWS : tile;
    int64_t size = tile * (depth + number * WIDE);
    REAL *scratch = malloc((size_t)(threads * size) * sizeof(REAL));
    if (!scratch) return 1;
#pragma omp parallel for schedule(dynamic)
    for (int64_t start = 0; start < rows; start += tile) {
        int64_t count = rows - start < tile ? rows - start : tile, whole = (count + ROWS - 1) / ROWS * ROWS;
        REAL *mixed = scratch + omp_get_thread_num() * size, *sums = mixed + tile * depth;
        for (int64_t i = 0; i < count; i++) mix_row(&of, start + i, mixed + i * depth);
        memset(mixed + count * depth, 0, (size_t)((whole - count) * depth) * sizeof *mixed);
        multiply_tile(mixed, whole, depth, panels, number, sums);
        for (int64_t i = 0; i < count; i++)
            memcpy(result + (start + i) * outputs, sums + i * number * WIDE, (size_t)outputs * sizeof *result);
    }
    free(scratch);
    return 0;
}

/* `features_gradient` (k, channels): of each neighbor. */
VECTORIZED static void mix_row_backward(const Mixing *of, int64_t i, const REAL *restrict mixed_gradient,
                                        REAL *restrict offsets_gradient, REAL *restrict features_gradient,
                                        REAL *restrict weights_gradient) {
    int64_t k = of->k, middle = of->middle, channels = of->channels, width = channels + 3;
    const REAL *rows[MOST_ROWS], *columns[MOST_ROWS], *restrict weights = of->weights + i * k * middle;
    const REAL *restrict offsets = of->offsets + i * k * 3;
    REAL positions[3][MOST_ROWS]; /* the part of the gradient that belongs to the offsets */
    find_neighbors(of, i, rows);
    for (int64_t m = 0; m < middle; m++) {
        columns[m] = mixed_gradient + m * width + 3;
        for (int axis = 0; axis < 3; axis++) positions[axis][m] = mixed_gradient[m * width + axis];
    }
    combine(columns, middle, weights, 1, middle, k, channels, features_gradient, channels);
    for (int64_t j = 0; j < k; j++) {
        project(rows[j], columns, middle, channels, weights_gradient + j * middle);
        for (int axis = 0; axis < 3; axis++) {
            add_scaled(offsets[j * 3 + axis], positions[axis], middle, weights_gradient + j * middle);
            REAL sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t m = 0; m < middle; m++) sum += weights[j * middle + m] * positions[axis][m];
            offsets_gradient[j * 3 + axis] = sum;
        }
    }
}

/* Gradients of offsets (rows, k, 3), features (points, channels; added to) and weights (rows, k, middle) from that of
 * `mixed`. Returns 1 if memory runs out. */
int bpfn_mix_backward(const REAL *mixed_gradient, const REAL *offsets, const REAL *features, const REAL *weights,
                      const int64_t *neighbors, int64_t rows, int64_t k, int64_t channels, int64_t middle,
                      REAL *offsets_gradient, REAL *features_gradient, REAL *weights_gradient) {
    const Mixing of = {offsets, features, weights, neighbors, k, channels, middle};
    int64_t chunk = 1 + CHUNK_ELEMENTS / (k * channels + 1);
    REAL *of_neighbors = malloc((size_t)(chunk * k * channels) * sizeof(REAL));
    if (!of_neighbors) return 1;
#pragma omp parallel
    for (int64_t start = 0; start < rows; start += chunk) {
        int64_t end = start + chunk < rows ? start + chunk : rows;
#pragma omp for schedule(static)
        for (int64_t i = start; i < end; i++)
            mix_row_backward(&of, i, mixed_gradient + i * middle * (channels + 3), offsets_gradient + i * k * 3,
                             of_neighbors + (i - start) * k * channels, weights_gradient + i * k * middle);
        share_add_rows(of_neighbors, neighbors + start * k, (end - start) * k, channels, features_gradient);
    }
    free(of_neighbors);
    return 0;
}
