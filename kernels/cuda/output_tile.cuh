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

// Division by a number that many dividends share: a multiplication, and a correction by one.
struct Divisor {
  u32 by, reciprocal;
  __device__ __forceinline__ explicit Divisor(u32 by) : by(by), reciprocal(0xFFFFFFFFu / by) {}
  __device__ __forceinline__ u32 quotient(u32 dividend) const {
    const u32 least = __umulhi(dividend, reciprocal);  // one too small, or right
    return least + (dividend - least * by >= by);
  }
};

// corner() for CTAs that take many tiles.
struct Raster {
  int token_tiles;
  Divisor band, last_width;  // tiles of a band; the last band's width in tiles of tokens

  __device__ __forceinline__ Raster(int m, int n)
      : token_tiles((m + TOKENS - 1) / TOKENS),
        band(RASTER_TOKEN_TILES * ((n + ROWS - 1) / ROWS)),
        last_width((token_tiles - 1) % RASTER_TOKEN_TILES + 1) {}
  __device__ __forceinline__ int tiles() const { return token_tiles * (band.by / RASTER_TOKEN_TILES); }
  __device__ __forceinline__ Corner corner(int tile) const {
    const int index = band.quotient(tile), first = index * RASTER_TOKEN_TILES, within = tile - index * band.by;
    const bool full = first + RASTER_TOKEN_TILES <= token_tiles;
    const int row = full ? within / RASTER_TOKEN_TILES : last_width.quotient(within);
    return {row * ROWS, (first + within - row * (full ? RASTER_TOKEN_TILES : (int)last_width.by)) * TOKENS};
  }
};

// Two tokens' values of one row -> one token's values of two rows: lane (g, c) gives row g of tokens 2c, 2c + 1 and
// gets token g's rows 2c, 2c + 1.
static __device__ __forceinline__ u32 transposed(u32 pair) {
  u32 result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
  return result;
}
