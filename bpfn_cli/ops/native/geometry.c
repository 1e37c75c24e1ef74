/* SPDX-License-Identifier: MIT
 *
 * Farthest point sampling and nearest neighbors of float32 clouds, exact.
 *
 * Distances are those of the torch versions to the last bit: float32, ((dx dx + dy dy) + dz dz), no fused multiply-add
 * (compiled with -ffp-contract=off), and the lowest index wins a tie. Coordinates must be finite. Functions return 0,
 * or 1 if memory runs out.
 */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "interface.h"

/* ---- Farthest point sampling ---- */

enum { SAMPLE_BLOCK = 512 }; /* points that share one largest distance */

/* Lower `nearest` of one block to the distance from (px, py, pz); returns the largest. */
VECTORIZED static float approach(const float *restrict x, const float *restrict y, const float *restrict z, float px,
                                 float py, float pz, float *restrict nearest, int64_t count) {
    float farthest = 0;
#pragma omp simd reduction(max : farthest)
    for (int64_t i = 0; i < count; i++) {
        float dx = x[i] - px, dy = y[i] - py, dz = z[i] - pz;
        float distance = dx * dx + dy * dy + dz * dz;
        distance = distance < nearest[i] ? distance : nearest[i];
        nearest[i] = distance;
        farthest = distance > farthest ? distance : farthest;
    }
    return farthest;
}

static int64_t first_equal(const float *values, float value) {
    int64_t i = 0;
    while (values[i] != value) i++;
    return i;
}

/* `points` (number, 3) to `chosen` (count). `scratch`: 4 number floats. */
static void sample(const float *points, int64_t number, int64_t count, int64_t *chosen, float *scratch) {
    float *x = scratch, *y = x + number, *z = y + number, *nearest = z + number;
    for (int64_t i = 0; i < number; i++) {
        x[i] = points[3 * i], y[i] = points[3 * i + 1], z[i] = points[3 * i + 2];
        nearest[i] = INFINITY;
    }
    int64_t last = 0;
    chosen[0] = 0;
    for (int64_t step = 1; step < count; step++) {
        float farthest = -1;
        int64_t block = 0;
        for (int64_t start = 0; start < number; start += SAMPLE_BLOCK) {
            int64_t size = number - start < SAMPLE_BLOCK ? number - start : SAMPLE_BLOCK;
            float of_block = approach(x + start, y + start, z + start, x[last], y[last], z[last], nearest + start, size);
            if (of_block > farthest) farthest = of_block, block = start;
        }
        last = block + first_equal(nearest + block, farthest);
        chosen[step] = last;
    }
}

/* `points` (clouds, number, 3) to indices `chosen` (clouds, count), the first always 0. */
int bpfn_sample(const float *points, int64_t clouds, int64_t number, int64_t count, int64_t *chosen) {
    float *scratch = malloc((size_t)(clouds * number * 4) * sizeof(float));
    if (!scratch) return 1;
#pragma omp parallel for schedule(static)
    for (int64_t cloud = 0; cloud < clouds; cloud++)
        sample(points + cloud * number * 3, number, count, chosen + cloud * count, scratch + cloud * number * 4);
    free(scratch);
    return 0;
}

/* ---- Nearest neighbors ---- */

enum { LEAF = 16, DEEPEST = 40, MOST_NEIGHBORS = 256 };

typedef struct {
    float at[3];
    int32_t index;
} Point;

typedef float Four __attribute__((vector_size(16)));
typedef int32_t FourBits __attribute__((vector_size(16)));

typedef struct {
    Four low, high; /* the fourth coordinate is 0 */
} Box;

/* A balanced k-d tree. Node i has the children 2i + 1 and 2i + 2; all leaves are on the last level, 8 to 16 points each,
 * padded with points at infinity. */
typedef struct {
    int64_t number;
    int levels;
    Point *points;    /* (number) leaf after leaf */
    Box *boxes;       /* (nodes) the smallest boxes */
    int32_t *least;   /* (nodes) the lowest index inside */
    int32_t *index;   /* (leaves, LEAF) original indices */
    float *x, *y, *z; /* (leaves, LEAF) */
} Tree;

static int tree_levels(int64_t number) {
    int levels = 0;
    while (((number - 1) >> levels) + 1 > LEAF) levels++;
    return levels;
}

static void free_tree(Tree *tree) {
    free(tree->points);
    free(tree->boxes);
    free(tree->least);
    free(tree->index);
    free(tree->x);
}

static int allocate_tree(Tree *tree, int64_t number) {
    tree->number = number;
    tree->levels = tree_levels(number);
    size_t leaves = (size_t)1 << tree->levels;
    tree->points = malloc((size_t)number * sizeof *tree->points);
    tree->boxes = malloc(2 * leaves * sizeof *tree->boxes);
    tree->least = malloc(2 * leaves * sizeof *tree->least);
    tree->index = malloc(leaves * LEAF * sizeof *tree->index);
    tree->x = malloc(3 * leaves * LEAF * sizeof *tree->x);
    if (!tree->points || !tree->boxes || !tree->least || !tree->index || !tree->x) return 1;
    tree->y = tree->x + leaves * LEAF;
    tree->z = tree->y + leaves * LEAF;
    return 0;
}

/* Put the `rank`-th smallest along `axis` at its place, smaller ones before it (Hoare's selection). */
static void split(Point *points, int64_t count, int64_t rank, int axis) {
    int64_t first = 0, last = count - 1;
    while (first < last) {
        float pivot = points[(first + last) / 2].at[axis];
        int64_t i = first, j = last;
        while (i <= j) {
            while (points[i].at[axis] < pivot) i++;
            while (points[j].at[axis] > pivot) j--;
            if (i <= j) {
                Point swapped = points[i];
                points[i++] = points[j], points[j--] = swapped;
            }
        }
        if (rank <= j) last = j;
        else if (rank >= i) first = i;
        else return;
    }
}

static void fill_leaf(Tree *tree, int64_t leaf, const Point *points, int64_t count) {
    for (int64_t i = 0; i < LEAF; i++) {
        const Point *point = points + (i < count ? i : 0);
        tree->index[leaf * LEAF + i] = point->index;
        tree->x[leaf * LEAF + i] = i < count ? point->at[0] : INFINITY;
        tree->y[leaf * LEAF + i] = point->at[1];
        tree->z[leaf * LEAF + i] = point->at[2];
    }
}

static void build_node(Tree *tree, int64_t node, int level, Point *points, int64_t count) {
    float low[4] = {INFINITY, INFINITY, INFINITY, 0}, high[4] = {-INFINITY, -INFINITY, -INFINITY, 0};
    int32_t least = INT32_MAX;
    for (int64_t i = 0; i < count; i++) {
        for (int axis = 0; axis < 3; axis++) {
            float value = points[i].at[axis];
            low[axis] = value < low[axis] ? value : low[axis];
            high[axis] = value > high[axis] ? value : high[axis];
        }
        least = points[i].index < least ? points[i].index : least;
    }
    tree->least[node] = least;
    memcpy(&tree->boxes[node].low, low, sizeof low);
    memcpy(&tree->boxes[node].high, high, sizeof high);
    if (level == tree->levels) {
        fill_leaf(tree, node + 1 - ((int64_t)1 << level), points, count);
        return;
    }
    int axis = 0;
    for (int other = 1; other < 3; other++)
        if (high[other] - low[other] > high[axis] - low[axis]) axis = other;
    split(points, count, count / 2, axis);
    build_node(tree, 2 * node + 1, level + 1, points, count / 2);
    build_node(tree, 2 * node + 2, level + 1, points + count / 2, count - count / 2);
}

/* `points` (number, 3). */
static void build_tree(Tree *tree, const float *points) {
    for (int64_t i = 0; i < tree->number; i++) {
        memcpy(tree->points[i].at, points + 3 * i, sizeof tree->points[i].at);
        tree->points[i].index = (int32_t)i;
    }
    build_node(tree, 0, 0, tree->points, tree->number);
}

/* The nearest points found so far, nearest first, as keys: the bits of the squared distance, which order as it does, over
 * the index. An insertion goes from one list to the other, without a branch. */
typedef struct {
    int64_t k, padded; /* k, and k up to whole vectors */
    int64_t *keys, *spare;
} Nearest;

static int64_t to_key(float distance, int32_t index) {
    int32_t bits;
    memcpy(&bits, &distance, sizeof bits);
    return (int64_t)bits << 32 | index;
}

static float key_distance(int64_t key) {
    int32_t bits = (int32_t)(key >> 32);
    float distance;
    memcpy(&distance, &bits, sizeof distance);
    return distance;
}

static inline void insert(Nearest *nearest, int64_t key) {
    const int64_t *restrict from = nearest->keys;
    int64_t *restrict to = nearest->spare;
    for (int64_t i = 0; i < nearest->padded; i++) {
        int64_t lower = from[i] < key ? from[i] : key;
        to[i] = from[i - 1] > lower ? from[i - 1] : lower;
    }
    nearest->spare = nearest->keys;
    nearest->keys = to;
}

static inline Four larger(Four a, Four b) {
    FourBits first = a > b;
    return (Four)(((FourBits)a & first) | ((FourBits)b & ~first));
}

/* Squared distance to a box from q, whose fourth coordinate is 0. */
static inline float box_distance(const Box *box, Four q) {
    Four outside = larger(larger(box->low - q, q - box->high), (Four){0, 0, 0, 0});
    Four square = outside * outside;
    return square[0] + square[1] + square[2];
}

static inline void search(const Tree *tree, Four q, Nearest *nearest, float bound) {
    struct { int64_t node; float distance; } stack[DEEPEST];
    int64_t first_leaf = ((int64_t)1 << tree->levels) - 1;
    int depth = 0;
    float x = q[0], y = q[1], z = q[2];
    stack[depth].node = 0, stack[depth++].distance = 0;
    while (depth) {
        int64_t node = stack[--depth].node;
        /* The second condition matters where many points tie: all in this node come after the k-th found. */
        if (stack[depth].distance > bound) continue;
        if (to_key(stack[depth].distance, tree->least[node]) > nearest->keys[nearest->k - 1]) continue;
        while (node < first_leaf) { /* descend on the nearer side; the other one follows later */
            int64_t near = 2 * node + 1, far = near + 1;
            float near_distance = box_distance(tree->boxes + near, q), far_distance = box_distance(tree->boxes + far, q);
            if (far_distance < near_distance) {
                float swapped = near_distance;
                near_distance = far_distance, far_distance = swapped;
                far = near++;
            }
            stack[depth].node = far, stack[depth].distance = far_distance;
            depth += far_distance <= bound;
            node = near;
            if (near_distance > bound) break;
        }
        if (node < first_leaf) continue;
        int64_t leaf = (node - first_leaf) * LEAF;
        float distance[LEAF];
        for (int i = 0; i < LEAF; i++) {
            float dx = x - tree->x[leaf + i], dy = y - tree->y[leaf + i], dz = z - tree->z[leaf + i];
            distance[i] = dx * dx + dy * dy + dz * dz;
        }
        int near[LEAF], count = 0;
        for (int i = 0; i < LEAF; i++) { /* no branch: half of them would be mispredicted */
            near[count] = i;
            count += distance[i] <= bound;
        }
        for (int i = 0; i < count; i++) {
            int64_t key = to_key(distance[near[i]], tree->index[leaf + near[i]]);
            insert(nearest, key);
        }
        float farthest = key_distance(nearest->keys[nearest->k - 1]);
        if (farthest < bound) bound = farthest;
    }
}

/* Neighbors of queries that are close together, written to the rows of their indices. */
VECTORIZED static void search_all(const Tree *tree, const Point *queries, int64_t count, int64_t k, int64_t *neighbors) {
    int64_t lists[2][1 + MOST_NEIGHBORS];
    lists[0][0] = lists[1][0] = INT64_MIN;
    Nearest nearest = {.k = k, .padded = (k + 7) / 8 * 8, .keys = lists[0] + 1, .spare = lists[1] + 1};
    int64_t nothing = to_key(INFINITY, 0);
    float reach = INFINITY;
    Four last = {0, 0, 0, 0};
    for (int64_t i = 0; i < count; i++) {
        Four q = {queries[i].at[0], queries[i].at[1], queries[i].at[2], 0};
        /* The k nearest of the last query are no farther from this one than by the step in between. */
        Four step = q - last;
        reach = (reach + sqrtf(step[0] * step[0] + step[1] * step[1] + step[2] * step[2])) * 1.00001f;
        last = q;
        for (int64_t j = 0; j < nearest.padded; j++) nearest.keys[j] = nothing;
        search(tree, q, &nearest, fminf(reach * reach * 1.00001f + 1e-35f, FLT_MAX));
        int64_t *row = neighbors + queries[i].index * k;
        for (int64_t j = 0; j < k; j++) row[j] = nearest.keys[j] & INT32_MAX;
        reach = sqrtf(key_distance(nearest.keys[k - 1]));
    }
}

/* Indices `neighbors` (clouds, queried, k) of the nearest of `points` (clouds, number, 3) to each of `queries` (clouds,
 * queried, 3), nearest first; k <= number, k <= MOST_NEIGHBORS. */
int bpfn_neighbors(const float *queries, const float *points, int64_t clouds, int64_t queried, int64_t number, int64_t k,
                   int64_t *neighbors) {
    enum { TASK = 256 };
    if (!clouds || !queried) return 0;
    int same = queries == points && queried == number, failed = 0;
    Tree *trees = calloc((size_t)clouds * 2, sizeof *trees);
    if (!trees) return 1;
    for (int64_t i = 0; i < 2 * clouds; i++)
        if (i < clouds || !same) failed |= allocate_tree(trees + i, i < clouds ? number : queried);
    if (!failed) {
        int64_t tasks = (queried + TASK - 1) / TASK;
#pragma omp parallel
        {
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < (same ? clouds : 2 * clouds); i++)
                build_tree(trees + i, i < clouds ? points + i * number * 3 : queries + (i - clouds) * queried * 3);
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < clouds * tasks; i++) {
                int64_t cloud = i / tasks, start = i % tasks * TASK;
                search_all(trees + cloud, trees[same ? cloud : clouds + cloud].points + start,
                           start + TASK < queried ? TASK : queried - start, k, neighbors + cloud * queried * k);
            }
        }
    }
    for (int64_t i = 0; i < 2 * clouds; i++) free_tree(trees + i);
    free(trees);
    return failed;
}
