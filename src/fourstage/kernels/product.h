/* Products of small matrices, the numbers of a tile held in registers. */
#ifndef PRODUCT_H
#define PRODUCT_H

#include "lanes.h"

#define TILE_ROWS 6
#if LANES == 16
#define TILE_COLUMNS 4
#else
#define TILE_COLUMNS 2
#endif

INLINE void tile(const int rows, const int columns, long inner, const float *a, long a_row,
                 long a_column, const float *b, long b_row, float *c, long c_row, int add) {
    lanes sums[TILE_ROWS][TILE_COLUMNS];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < columns; j++)
            sums[i][j] = add ? load(c + i * c_row + j * LANES) : all(0.0f);
    for (long k = 0; k < inner; k++) {
        lanes right[TILE_COLUMNS];
#pragma GCC unroll 8
        for (int j = 0; j < columns; j++) right[j] = load(b + k * b_row + j * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            lanes left = all(a[i * a_row + k * a_column]);
#pragma GCC unroll 8
            for (int j = 0; j < columns; j++) sums[i][j] += left * right[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < columns; j++) store(c + i * c_row + j * LANES, sums[i][j]);
}

INLINE void strip(const int columns, long rows, long inner, const float *a, long a_row,
                  long a_column, const float *b, long b_row, float *c, long c_row, int add) {
    long i = 0;
    for (; i + TILE_ROWS <= rows; i += TILE_ROWS)
        tile(TILE_ROWS, columns, inner, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row,
             c_row, add);
    a += i * a_row;
    c += i * c_row;
    switch (rows - i) {
    case 5: tile(5, columns, inner, a, a_row, a_column, b, b_row, c, c_row, add); break;
    case 4: tile(4, columns, inner, a, a_row, a_column, b, b_row, c, c_row, add); break;
    case 3: tile(3, columns, inner, a, a_row, a_column, b, b_row, c, c_row, add); break;
    case 2: tile(2, columns, inner, a, a_row, a_column, b, b_row, c, c_row, add); break;
    case 1: tile(1, columns, inner, a, a_row, a_column, b, b_row, c, c_row, add); break;
    }
}

/* c (+)= a b: a [rows, inner] with any strides, b [inner, columns] and c with columns a multiple
   of LANES. */
static void product(long rows, long columns, long inner, const float *a, long a_row, long a_column,
                    const float *b, long b_row, float *c, long c_row, int add) {
    long j = 0;
    for (; j + TILE_COLUMNS * LANES <= columns; j += TILE_COLUMNS * LANES)
        strip(TILE_COLUMNS, rows, inner, a, a_row, a_column, b + j, b_row, c + j, c_row, add);
    switch ((columns - j) / LANES) {
#if TILE_COLUMNS > 2
    case 3: strip(3, rows, inner, a, a_row, a_column, b + j, b_row, c + j, c_row, add); break;
    case 2: strip(2, rows, inner, a, a_row, a_column, b + j, b_row, c + j, c_row, add); break;
#endif
    case 1: strip(1, rows, inner, a, a_row, a_column, b + j, b_row, c + j, c_row, add); break;
    }
}

#endif
