// Of w4a8_small.cu: what a stage of a warp's ring holds, who fills it, and where the warp's weights lie.
#pragma once

// kernels/formats.py: a block of 128 k is two tiles' nibbles, then their scale words; of activations 1024 bytes a tile.
constexpr int NIBBLES = 1024, SCALES = GROUPED ? 32 : 0, BLOCK = 2 * (NIBBLES + SCALES), X_TILE = 1024;
constexpr int X_STAGE = TOKEN_TILES * X_TILE;

// A bulk copy is fast if source and destination lie alike within 128 bytes; otherwise a line is written in two parts:
// on an H100 g128i took up to 1.4 times as long for 64 tokens. Every second block of g128i, 33 times 64 bytes, begins
// in the middle of a line of W, and therefore in the middle of one of its stage. A stage's further blocks lie as its
// first does, which is right where K / 128 is even.
constexpr int LINE = 128, MOST_SKEW = GROUPED ? LINE / 2 : 0;
static __device__ constexpr int skew_of(u32 block_index) { return block_index % 2 * MOST_SKEW; }
static __device__ constexpr int whole_lines(int bytes) { return (bytes + LINE - 1) / LINE * LINE; }

// A stage holds whole blocks as they lie in memory; with an odd number of tiles all nibbles, then all scales.
constexpr bool WHOLE_BLOCKS = TILES % 2 == 0;
constexpr int BLOCK_STRIDE = whole_lines(BLOCK + MOST_SKEW);
constexpr int X_OFFSET =
    WHOLE_BLOCKS ? TILES / 2 * BLOCK_STRIDE : whole_lines(TILES * (NIBBLES + SCALES) + MOST_SKEW);
constexpr int STAGE = X_OFFSET + OWN_X * X_STAGE;
static_assert(STAGE % LINE == 0 && X_OFFSET % LINE == 0 && X_TILE % LINE == 0, "");
static __device__ constexpr int nibbles_of(int tile) {
  return WHOLE_BLOCKS ? tile / 2 * BLOCK_STRIDE + tile % 2 * NIBBLES : tile * NIBBLES;
}
static __device__ constexpr int scales_of(int tile) {
  return WHOLE_BLOCKS ? tile / 2 * BLOCK_STRIDE + 2 * NIBBLES + tile % 2 * SCALES : TILES * NIBBLES + tile * SCALES;
}

#if __CUDA_ARCH__ >= 900
// One lane requests; the phase of a stage's barrier ends when all announced bytes have landed.
struct Ring {
  u32 barriers;

  static __device__ bool requests(int lane) { return lane == 0; }
  __device__ void init() const {
    for (int stage = 0; stage < STAGES; stage++) mbarrier_init(barriers + 8 * stage, 1);
    mbarrier_init_fence();
  }
  __device__ void announce(int stage, int bytes) const { mbarrier_arrive_expect(barriers + 8 * stage, bytes); }
  template <int most>
  __device__ void copy(int stage, u32 to, const u8* from, int bytes, u64 policy) const {
    bulk_copy(to, from, bytes, barriers + 8 * stage, policy);
  }
  template <int most>
  __device__ void copy(int stage, u32 to, const u8* from, int bytes) const {
    bulk_copy(to, from, bytes, barriers + 8 * stage);
  }
  __device__ void commit() const {}
  __device__ void wait(int stage, u32 parity) const { mbarrier_wait(barriers + 8 * stage, parity); }
};
#else
// All lanes request, 16 bytes each; a step commits one group, empty or not, so that counting groups counts steps.
struct Ring {
  static_assert(!SHARED_X, "warps share activations by means of mbarriers");
  u32 barriers;

  static __device__ bool requests(int) { return true; }
  __device__ void init() const {}
  __device__ void announce(int, int) const {}
  template <int most>
  __device__ void copy(int, u32 to, const u8* from, int bytes, u64 /*policy, of bulk copies alone*/ = 0) const {
#pragma unroll
    for (int at = 0; at < most; at += 512) {
      const int mine = at + 16 * (threadIdx.x % 32);
      if (mine < bytes) copy_16_async(to + mine, from + mine);
    }
  }
  __device__ void commit() const { copy_commit(); }
  __device__ void wait(int, u32) const {
    copy_wait<STAGES - 1>();
    __syncwarp();
  }
};
#endif

static __device__ int first_tile(int group, int row_warp) { return group * (ROWS / 16) + row_warp * TILES; }
static __device__ u32 first_block(int group, int row_warp, int k_warp, int k_blocks) {
  return first_tile(group, row_warp) / 2 * k_blocks + k_warp;
}

// Where a warp's tiles lie in the packed weights: block of K by block of K, row group by row group.
struct WeightCursor {
  u32 index;  // of the block that holds the warp's first tile
  int odd;    // whether that tile is the second of its block
  int tiles;  // fewer than TILES, or none, at the end of W
  int group, step;

  __device__ void enter(int row_warp, int k_warp, int k_blocks, int n) {
    const int first = first_tile(group, row_warp);
    index = first_block(group, row_warp, k_warp, k_blocks);
    odd = WHOLE_BLOCKS ? 0 : first % 2;
    tiles = min(max(n / 16 - first, 0), TILES);
    step = 0;
  }

  __device__ void request(const Ring& ring, int stage, u32 to, const u8* weights, u64 row_block, u64 policy) const {
    const u8* block = weights + (u64)index * BLOCK;
    to += skew_of(index);
    if constexpr (WHOLE_BLOCKS) {
#pragma unroll
      for (int b = 0; b < TILES / 2; b++)
        if (2 * b < tiles) ring.copy<BLOCK>(stage, to + b * BLOCK_STRIDE, block + b * row_block, BLOCK, policy);
    } else {
#pragma unroll
      for (int b = 0; b <= TILES / 2; b++) {
        const int begin = max(2 * b - odd, 0), end = min(2 * b - odd + 2, tiles), count = end - begin;
        const int skipped = begin - (2 * b - odd);
        const u8* from = block + b * row_block;
        if (count <= 0) continue;
        ring.copy<2 * NIBBLES>(stage, to + nibbles_of(begin), from + skipped * NIBBLES, count * NIBBLES, policy);
        if (GROUPED)
          ring.copy<2 * SCALES>(stage, to + scales_of(begin), from + 2 * NIBBLES + skipped * SCALES, count * SCALES,
                                policy);
      }
    }
  }
};
