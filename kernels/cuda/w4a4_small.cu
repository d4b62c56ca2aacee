// W4A4 for 1 … 64 tokens: out[M, N] = x[M, K] times the transpose of 4-bit weights [N, K], mma.sync of native INT4
// (compute capability 8.0, 8.6, 8.7, 8.9; from 9.0 on INT8 ones emulate it, int4_mma.cuh: exact and slow). Bound: reading w.
//
// CTA       one an SM: ROWS whole rows of W, then its next ROWS. Operand A is the weights, 16 rows a tile, and B the
//           tokens, 8 a tile, TOKENS of them, of which m are stored. Nothing is split between CTAs.
// warp      K is split: block kb of 128 is warp kb mod WARPS's. Integer sums do not depend on order, float sums are
//           added in one that depends on ROWS, TOKENS and WARPS alone: the same bits every time.
// loads     each warp has a ring of its own, STAGES blocks of 128 of K deep, filled by cp.async, 16 bytes a lane in the
//           fragment order in which both operands lie in memory (kernels/formats.py). It refills a stage as soon as it
//           has multiplied it, with the next row group's blocks at the end of a row group, and waits for no other warp
//           until the sums are added up: memory stays busy meanwhile. WARPS * STAGES * ROWS * 64 bytes of weights are
//           in flight, 24 to 64 KB in w4a4_small.py's tiles.
// scales    GROUP of K (128, 64, 32) and STRATEGY: group_sums.cuh. The offset of MAGIC_FFMA2 is computed, two FMUL for
//           16 rows, and not read: it would be one byte in eighteen. Row and token scales and bias: once, at the end.
// shared    the rings, (ROWS + TOKENS) * 64 bytes a stage and scales, and sums, up to 20 KB: w4a4_small.py's
//           shared_bytes, which the compile tests hold against SHARED_BYTES.
//
// Registers a thread, the most of 8.0, 8.6 and 8.9, no local memory (compile tests):
//   ROWS * TOKENS      128    256    512   1024   2048   4096
//   none                57     57     88     90    126    190
//   imad                58     58     77    116    150    214
//   magic_ffma2         58     62     96    136    218    232
//   GROUP 64, 32        58     62    108    138    221      -
//
// What else a block of 128 of K takes, 64 x 64 and magic_ffma2 on an A100, the most there is: Tensor Core and FMA pipe
// 128 clocks each, shared memory 141, issue slots 125, where reading its weights takes 325 (80 GB: 13.4 bytes a clock
// and SM). With 8 tokens and 32 rows: 8, 8, 46 and 24 of 162.
#include "mma.cuh"

#include "async_copy.cuh"
#include "group_sums.cuh"
#include "int4_mma.cuh"
#include "output.cuh"
#include "row_quads.cuh"
#include "widen.cuh"

constexpr int THREADS = 32 * WARPS, TILES = ROWS / 16, TOKEN_TILES = TOKENS / 8;
constexpr int GROUPS = TOKEN_SCALES ? 128 / GROUP : 1, MMA_K = GROUP < 64 ? 32 : 64;
constexpr int STEPS = 128 / MMA_K / GROUPS;  // MMAs of a group
constexpr int ROW_BLOCKS = (ROWS + 31) / 32, TOKEN_BLOCKS = (TOKENS + 31) / 32;
static_assert((ROWS == 16 || ROWS % 32 == 0) && TOKENS % 8 == 0 && (TOKENS < 32 || TOKENS % 32 == 0), "");

// kernels/formats.py: blocks of 32 rows or tokens x 128 of K, tiles' nibbles and then scales. Of weights with fp32
// scales an offset lies beside each, in a line of its own, which stays in memory.
constexpr int TILE = 1024, TOKEN_TILE = 512, NIBBLES = 2048;
constexpr bool FP32_SCALES = FLOAT_SCALES && GROUP == 128;
constexpr int SCALES = FP32_SCALES ? 128 : FLOAT_SCALES ? GROUPS * 64 : 0;
constexpr int TOKEN_SCALE_BYTES = TOKEN_SCALES ? GROUPS * 128 : 0;
constexpr int BLOCK = NIBBLES + (FP32_SCALES ? 2 * SCALES : SCALES), TOKEN_BLOCK = NIBBLES + TOKEN_SCALE_BYTES;

// A stage: nibbles of weights, their scales, nibbles of tokens, their scales. With 16 rows half of the scales are
// those of the block's other tile.
constexpr int SCALES_AT = TILES * TILE, X_AT = SCALES_AT + ROW_BLOCKS * SCALES;
constexpr int X_SCALES_AT = X_AT + TOKEN_TILES * TOKEN_TILE, STAGE = X_SCALES_AT + TOKEN_BLOCKS * TOKEN_SCALE_BYTES;

// Sums of warps: [COPIES][TOKENS][ROWS + 4], the 4 against bank conflicts. Where they are large, warps take turns.
constexpr int MOST_SUMS = 4096, FITTING = MOST_SUMS / (ROWS * TOKENS), COPIES = FITTING < WARPS ? FITTING : WARPS;
constexpr int TURNS = WARPS / COPIES, ROW_STRIDE = ROWS + 4, COPY_WORDS = TOKENS * ROW_STRIDE;
static_assert(COPIES > 0 && WARPS % COPIES == 0, "");
struct alignas(16) Quad {
  Sum sum[4];
};
constexpr int SUMS_AT = WARPS * STAGES * STAGE, TOKEN_AT = SUMS_AT + COPIES * COPY_WORDS * 4;
constexpr int SHARED_BYTES = TOKEN_AT + TOKENS * 4;

// A lane's share of copying `bytes` that lie side by side.
template <int bytes>
static __device__ __forceinline__ void copy(u32 to, const u8* from, int lane) {
#pragma unroll
  for (int at = 0; at < bytes; at += 512)
    if (at + 16 * lane < bytes) copy_16_async(to + at + 16 * lane, from + at + 16 * lane);
}

// Step `step` of a block's 128 of K: one tile of weights times one of tokens.
static __device__ __forceinline__ void multiply(u32 (&sum)[4], const uint4 (&a)[2], const uint4& b, int step) {
  const u32 b_of[4] = {b.x, b.y, b.z, b.w};
  if constexpr (MMA_K == 64) {
    int4_m16n8k64::mma(sum, {a[step].x, a[step].y, a[step].z, a[step].w}, {b_of[2 * step], b_of[2 * step + 1]});
  } else {
    const uint4& half = a[step / 2];
    const u32 rows[2] = {step % 2 ? half.z : half.x, step % 2 ? half.w : half.y};
    int4_m16n8k32::mma(sum, rows, {b_of[step]});
  }
}

// The same into the sum itself, or into the group's.
template <class S>
static __device__ __forceinline__ void multiply(S& sum, u32 (&part)[4], const uint4 (&a)[2], const uint4& b, int step,
                                                const Start& start) {
  if constexpr (TOKEN_SCALES) {
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (step % STEPS == 0) part[e] = start.c[e];
    multiply(part, a, b, step);
  } else {
    multiply(sum, a, b, step);
  }
}

struct RowPair {
  float scale[2], offset[2];
};

// Of a thread's rows g and g + 8 in a tile. `tile`: within its block.
static __device__ __forceinline__ RowPair row_pair(const u8* scales, int tile, int g, int group) {
  if constexpr (!FLOAT_SCALES) return {};
  const u8* const at = scales + (FP32_SCALES ? g * 16 + tile * 8 : group * 64 + tile * 32 + g * 4);
  const float2 scale = FP32_SCALES ? *reinterpret_cast<const float2*>(at)
                                   : f16x2_to_float2(*reinterpret_cast<const u32*>(at));
  return {{scale.x, scale.y}, {-MAGIC * scale.x, -MAGIC * scale.y}};
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    gemm(const u8* weights, const float* row_scale, const u8* x, const float* x_scale, const int* /*x_sum*/,
         const Out* bias, Out* out, u8* /*workspace*/, int m, int n, int k) {
  extern __shared__ __align__(128) u8 shared[];
  const int thread = threadIdx.x, lane = thread % 32, g = lane / 4, c = lane % 4;
  const int warp = __shfl_sync(~0u, thread / 32, 0);  // uniform, and the compiler knows
  const int k_blocks = k / 128, row_groups = (n + ROWS - 1) / ROWS, token_blocks = (m + 31) / 32;
  launch_dependents();
  wait_for_previous_kernel();

  const u8* const stages = shared + warp * (STAGES * STAGE);
  int next_group = blockIdx.x, next_block = warp;  // what the warp requests next
  const auto request = [&](int stage) {
    if (next_group < row_groups && next_block < k_blocks) {
      const u32 to = shared_address(stages + stage * STAGE);
      const int first = next_group * ROWS;
      const u8* from = weights + ((u64)(first / 32) * k_blocks + next_block) * BLOCK;
#pragma unroll
      for (int b = 0; b < ROW_BLOCKS; b++) {
        if (b && first + 32 * b >= n) break;
        const int second = TILES == 1 && first % 32 ? TILE : 0;  // the only one wanted
        copy<TILES == 1 ? TILE : NIBBLES>(to + b * NIBBLES, from + second, lane);
        copy<SCALES>(to + SCALES_AT + b * SCALES, from + NIBBLES, lane);
        from += (u64)k_blocks * BLOCK;
      }
      const u8* of_x = x + (u64)(next_block * token_blocks) * TOKEN_BLOCK;
#pragma unroll
      for (int j = 0; j < TOKEN_TILES; j++) {
        const u8* of_tile = of_x + j / 4 * TOKEN_BLOCK + j % 4 * TOKEN_TILE;
        if (8 * j + g < m) copy_16_async(to + X_AT + j * TOKEN_TILE + 16 * lane, of_tile + 16 * lane);
      }
#pragma unroll
      for (int b = 0; b < TOKEN_BLOCKS; b++)
        if (32 * b < m)
          copy<TOKEN_SCALE_BYTES>(to + X_SCALES_AT + b * TOKEN_SCALE_BYTES, of_x + b * TOKEN_BLOCK + NIBBLES, lane);
      next_block += WARPS;
      if (next_block >= k_blocks) next_block = warp, next_group += gridDim.x;
    }
    copy_commit();  // a group a step, empty or not, so that counting groups counts steps
  };
#pragma unroll
  for (int stage = 0; stage < STAGES; stage++) request(stage);

  const Start start;
  Sum* const sums = reinterpret_cast<Sum*>(shared + SUMS_AT);
  float* const token_scale = reinterpret_cast<float*>(shared + TOKEN_AT);
  if (thread < m) token_scale[thread] = FLOAT_SCALES ? 1.0f : x_scale[thread];

  int stage = 0;
#pragma unroll 1
  for (int row_group = blockIdx.x; row_group < row_groups; row_group += gridDim.x) {
    Sum sum[TILES][TOKEN_TILES][4]{};
#pragma unroll 1
    for (int block = warp; block < k_blocks; block += WARPS) {
      copy_wait<STAGES - 1>();
      __syncwarp();  // with every lane's copies
      const u8* const w = stages + stage * STAGE;
      uint4 a[TILES][2];
#pragma unroll
      for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int h = 0; h < 2; h++) a[t][h] = *reinterpret_cast<const uint4*>(w + (2 * t + h) * 512 + 16 * lane);
#pragma unroll
      for (int group = 0; group < GROUPS; group++) {
        RowPair rows[TILES];
#pragma unroll
        for (int t = 0; t < TILES; t++)
          rows[t] = row_pair(w + SCALES_AT + t / 2 * SCALES, TILES == 1 ? row_group % 2 : t % 2, g, group);
#pragma unroll
        for (int j = 0; j < TOKEN_TILES; j++) {
          const uint4 b = *reinterpret_cast<const uint4*>(w + X_AT + j * TOKEN_TILE + 16 * lane);
          const u8* scales = w + X_SCALES_AT + j / 4 * TOKEN_SCALE_BYTES + group * 128 + j % 4 / 2 * 64 + c * 16;
          const uint2 scale = TOKEN_SCALES ? *reinterpret_cast<const uint2*>(scales + j % 2 * 8) : uint2{};
          u32 part[TILES][4];
#pragma unroll
          for (int step = group * STEPS; step < (group + 1) * STEPS; step++)
#pragma unroll
            for (int t = 0; t < TILES; t++) multiply(sum[t][j], part[t], a[t], b, step, start);
#pragma unroll
          for (int t = 0; t < TILES; t++)
            if (TOKEN_SCALES) add_group(sum[t][j], part[t], rows[t].scale, rows[t].offset, {scale.x, scale.y});
        }
      }
      __syncwarp();  // all lanes have read the stage
      request(stage);
      if (++stage == STAGES) stage = 0;
    }

    const Share share(thread, row_group, m, n);
    const RowScales rows = RowScales::load(share, row_scale, bias);
    if (row_group != (int)blockIdx.x) __syncthreads();  // the sums of the row group before have been read
    // A sum's place: tokens 2 * c and the next, rows g and g + 8 (mma.sync, fragment C of m16n8).
    Sum* const mine = sums + warp % COPIES * COPY_WORDS + 2 * c * ROW_STRIDE + g;
#pragma unroll 1
    for (int turn = 0; turn < TURNS; turn++) {
      if (warp / COPIES == turn) {
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
          for (int j = 0; j < TOKEN_TILES; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
              Sum& place = mine[16 * t + e / 2 * 8 + (8 * j + e % 2) * ROW_STRIDE];
              place = (turn ? place : Sum{}) + sum[t][j][e];
            }
      }
      __syncthreads();
    }
    if (!share.exists) continue;
    for (int token = share.token; token < m; token += Share::TOKENS_AT_ONCE) {
      const Sum* of_token = sums + token * ROW_STRIDE + share.row % ROWS;
      Quad total = *reinterpret_cast<const Quad*>(of_token);
#pragma unroll
      for (int copy = 1; copy < COPIES; copy++) {
        const Quad part = *reinterpret_cast<const Quad*>(of_token + copy * COPY_WORDS);
#pragma unroll
        for (int i = 0; i < 4; i++) total.sum[i] += part.sum[i];
      }
      u32 bits[4];
#pragma unroll
      for (int i = 0; i < 4; i++)
        bits[i] = scaled(value(total.sum[i]), token_scale[token], rows.scale[i], from_out(rows.bias[i]));
      *reinterpret_cast<uint2*>(out + (u64)token * n + share.row) = {bits[0] | bits[1] << 16, bits[2] | bits[3] << 16};
    }
  }
}
