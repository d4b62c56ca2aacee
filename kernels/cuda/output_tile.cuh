// Where a CTA's tile of ROWS weight rows x TOKENS tokens lies in out[M, N], and how accumulators of its transpose turn.
#pragma once

constexpr int RASTER_TOKEN_TILES = 8;  // CTAs in flight cover a patch of out this many tiles wide: both operands hit L2

struct Corner {
  int row, token;
};

// CTAs in order: down the rows within a band of RASTER_TOKEN_TILES tiles of tokens, then the next band.
static constexpr __device__ Corner corner(int cta, int m, int n) {
  const int row_tiles = (n + ROWS - 1) / ROWS, token_tiles = (m + TOKENS - 1) / TOKENS;
  const int first = cta / (RASTER_TOKEN_TILES * row_tiles) * RASTER_TOKEN_TILES, within = cta - first * row_tiles;
  const int width = token_tiles - first < RASTER_TOKEN_TILES ? token_tiles - first : RASTER_TOKEN_TILES;
  return {within / width * ROWS, (first + within % width) * TOKENS};
}

// Two tokens' values of one row -> one token's values of two rows: lane (g, c) gives row g of tokens 2c, 2c + 1 and
// gets token g's rows 2c, 2c + 1.
static __device__ __forceinline__ u32 transposed(u32 pair) {
  u32 result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
  return result;
}
