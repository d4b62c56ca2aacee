// out[M, N] = x[M, K] times the transpose of 4-bit weights [N, K]: INT4 activations, mma.sync m16n8k64 of native INT4
// (compute capability 8.0, 8.6, 8.7, 8.9; from 9.0 on INT8 ones emulate it, int4_mma.cuh: exact and slow). Any M.
//
// CTA       ROWS weight rows x TOKENS tokens. Operand A is the weights and B the tokens, so a tile of accumulators is
//           16 rows x 8 tokens of out's transpose.
// warp      WARP_ROWS x WARP_TOKENS. With 64 x 64 it reads 8 KB of shared memory for 64 MMAs of 128 of K.
// loads     cp.async, STAGES stages of STEP of K. Both operands lie in memory in blocks of 32 (rows or tokens) x 128 of
//           K, in fragment order and with their groups' scales behind them (kernels/formats.py). LANES threads copy one
//           block of 32 along all of K, so a thread has one pointer and one distance between its blocks. Every read of
//           shared memory takes 16 bytes a lane, the lanes side by side (of scales some lanes share theirs): no
//           conflict, no swizzle, no ldmatrix. With groups below 128 tokens come 8 bytes a lane, 16 apart, so each
//           takes two turns. Blocks beyond N or M repeat the last one, blocks beyond K become zeros, scales included,
//           so no copy has bounds of its own.
// pipeline  one barrier a stage, before its last column of MMA tiles, by when every warp has read the stage; it is
//           refilled right behind the barrier. Tokens are loaded one column (8 tokens) ahead, the weights of a span of
//           K (128, with smaller groups 64) behind the last MMA that needs those before them. A group's sums are scaled
//           behind the MMAs of the next group or column.
// scales    STRATEGY, per accumulator and GROUP of K: group_sums.cuh. The offset of magic_ffma2 lies beside its scale
//           in memory for g128. Of g64 and g32 scales are fp16 there, for fp32 and an offset would be a quarter and a
//           half of all bytes: a conversion and a product for each row's scale.
//           Row and token scales and the bias are applied once, in the epilogue.
// MMA_K     64, or 32: groups of 32, and the paper's instruction, which needs two for the work of one.
// epilogue  8 x 8 tiles are transposed by movmatrix and collected in the stages' memory: out is written 16 bytes a
//           thread, whole rows of the tile.
//
// Instructions per accumulator and 128 of K, the most of 8.0, 8.6 and 8.9, IMMA 0.500 always; no local memory; the
// compile tests hold them:
//                  dequantisation   everything else                                               registers
//                                   64 x 64 a warp                 64 x 32 a warp, STEP 256       64 x 64, 64 x 32
//                                   STEP 256      STEP 128         CTA 128 x 128     64 x 64
//   none                 0            0.262         0.312              0.398         0.461         198      132
//   imad                 1            0.305         0.367              0.445         0.508         252      164
//   magic_ffma2          2            0.336         0.391              0.516         0.578         246      190
//     g64                4            0.711         0.781              1.195         1.258         246      166
//     g32                8                          1.164              1.859         1.938         252      192
//   i2f_fmul_ffma        3            0.344         0.375              0.484         0.547         254      174
// (MMA_K 32: IMMA 1.000; i2f_fmul_ffma has everything else up to 0.406 and 0.547. Of g64 and g32 it holds the weights'
// scales: 0.25 and 0.5, with 64 x 32 a warp twice that.)
// It depends on ptxas -O1, which keeps the order below (kernels/w4a4_mma.py). Bound aimed at: the Tensor Core, 64 x 64
// accumulators x 128 of K = 64 IMMA of 8192 MAC a warp.
#include "mma.cuh"

#include "async_copy.cuh"
#include "group_sums.cuh"
#include "int4_mma.cuh"
#include "output.cuh"
#include "output_tile.cuh"
#include "widen.cuh"

constexpr bool FP16_SCALES = FLOAT_SCALES && GROUP < 128;  // of the weights, in memory; else fp32 and offsets

constexpr int WARPS = ROWS / WARP_ROWS * (TOKENS / WARP_TOKENS), THREADS = 32 * WARPS;
constexpr int ROW_TILES = WARP_ROWS / 16, TOKEN_TILES = WARP_TOKENS / 8;

// Blocks of 32 rows or tokens x 128 of K (kernels/formats.py): nibbles, then scales of the group, which all lie at the
// same place in shared memory.
constexpr int GROUPS = 128 / GROUP, NIBBLES = 2048;
constexpr int WEIGHT_SCALES = FP16_SCALES ? GROUPS * 64 : FLOAT_SCALES ? 256 : 0, OFFSETS = NIBBLES + 128;
constexpr int TOKEN_SCALE_BYTES = TOKEN_SCALES ? GROUPS * 128 : 0;  // fp32 or INT32
constexpr int WEIGHT_BLOCK = NIBBLES + WEIGHT_SCALES, TOKEN_BLOCK = NIBBLES + TOKEN_SCALE_BYTES;
constexpr int SLOT_BLOCK = WEIGHT_BLOCK > TOKEN_BLOCK ? WEIGHT_BLOCK : TOKEN_BLOCK;
constexpr int ROW_BLOCKS = ROWS / 32, BLOCKS = (ROWS + TOKENS) / 32;
constexpr int K_BLOCKS = STEP / 128, K_BLOCK = BLOCKS * SLOT_BLOCK, STAGE = K_BLOCKS * K_BLOCK;

// A thread holds its weights of a span of K at once, and sums it column after column of MMA tiles, group after group.
constexpr int SPAN = GROUP < 128 ? 64 : 128, SPANS = 128 / SPAN, SPAN_GROUPS = SPAN / GROUP;
constexpr int COLUMN_GROUPS = TOKEN_TILES * SPAN_GROUPS;

constexpr int LANES = THREADS / BLOCKS;  // that copy a block
constexpr int PIECE = 16 * LANES, PIECES = NIBBLES / PIECE, MIDDLE = NIBBLES / 2;
constexpr int SCALE_PIECES = (SLOT_BLOCK - NIBBLES + PIECE - 1) / PIECE;
static_assert(LANES * BLOCKS == THREADS && NIBBLES % PIECE == 0, "");
static_assert(GROUP % MMA_K == 0 && SPAN % GROUP == 0 && COLUMN_GROUPS % 2 == 0, "");
static_assert(WARP_ROWS % 32 == 0 && WARP_TOKENS % 32 == 0 && STAGES >= 2 && TOKENS <= THREADS, "");

constexpr int OUT_STRIDE = ROWS + 8;  // of a token in the epilogue: sixteen bytes more, against bank conflicts
constexpr int EPILOGUE = TOKENS * (OUT_STRIDE * 2 + 4);
constexpr int SHARED = STAGES * STAGE > EPILOGUE ? STAGES * STAGE : EPILOGUE;  // what geometry() asks for
constexpr int CTAS_PER_SM = 65536 / (THREADS * 256);

// Zeros where the source does not exist. Predicated, where an if() may become a branch that splits the loop.
static __device__ __forceinline__ void copy_16_async_or_zero(bool wanted, bool exists, u32 to, const void* from) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %3, 0; @p cp.async.cg.shared.global [%0], [%1], 16, %2; }" ::"r"(to),
               "l"(from), "r"(exists ? 16 : 0), "r"((int)wanted)
               : "memory");
}

// One thread's share of filling stages: its 16 bytes of every piece of a block of 32, block after block along K.
struct Loader {
  const u8* from;  // middle of a block's nibbles: a copy's address reaches 2048 bytes around its register
  u64 distance;    // between blocks of K
  u32 to;          // shared memory, in the first stage
  int left;        // blocks of K
  bool scale_lane[SCALE_PIECES + 1];  // whether it copies of them; one more, for there may be none

  // The empty statements keep the compiler from adding up every copy's address on its own, and from holding the old and
  // the new value of a register at once; where they stand was found by trial.
  __device__ __forceinline__ void stage(u32 slot) {
#pragma unroll
    for (int b = 0; b < K_BLOCKS; b++) {
      if (K_BLOCKS == 1) asm volatile("" : "+l"(from));
      const bool exists = left > b;
      const u32 block = to + slot + b * K_BLOCK;
#pragma unroll
      for (int i = 0; i < PIECES; i++) {
        copy_16_async_or_zero(true, exists, block + i * PIECE, from + (i * PIECE - MIDDLE));
      }
#pragma unroll
      for (int i = 0; i < SCALE_PIECES; i++) {
        const int at = NIBBLES + i * PIECE;
        copy_16_async_or_zero(scale_lane[i], exists, block + at, from + (at - MIDDLE));
      }
      from += distance;
      if (K_BLOCKS > 1) asm volatile("" : "+l"(from));
    }
    left -= K_BLOCKS;
    asm volatile("" : "+r"(left));
    copy_commit();
  }
};

// One address each, computed before the loop: the compiler would rather keep their parts and add them up in it.
static __device__ __forceinline__ const u8* held(const u8* shared, u32 offset) {
  asm volatile("mov.b32 %0, %0;" : "+r"(offset));
  return shared + offset;
}

// One thread's weights of a span of K, and the scales of its rows, g and g + 8 of a tile together.
struct Weights {
  alignas(16) u32 a[ROW_TILES][SPAN / 16];
  alignas(16) float scale[SPAN_GROUPS][ROW_TILES * 2], offset[SPAN_GROUPS][ROW_TILES * 2];

  __device__ __forceinline__ void load(const u8* mine, int t, int span) {
#pragma unroll
    for (int h = 0; h < SPAN / 64; h++) {
      *(uint4*)(a[t] + 4 * h) = *(const uint4*)(mine + t / 2 * SLOT_BLOCK + (t % 2 * 2 + span + h) * 512);
    }
  }
  // `mine`: as far behind the first block as the lane's scales, fp32 of two tiles or fp16 of one, behind its nibbles.
  __device__ __forceinline__ void load_scales(const u8* mine, int span) {
    if (!FLOAT_SCALES) return;
#pragma unroll
    for (int p = 0; p < ROW_TILES / 2; p++) {
      const u8* const block = mine + p * SLOT_BLOCK;
#pragma unroll
      for (int g = 0; g < SPAN_GROUPS; g++) {
        if constexpr (FP16_SCALES) {
          const u8* const words = block + NIBBLES + (span * SPAN_GROUPS + g) * 64;
          const float2 first = f16x2_to_float2(*(const u32*)words), second = f16x2_to_float2(*(const u32*)(words + 32));
          *(float4*)(scale[g] + 4 * p) = {first.x, first.y, second.x, second.y};
          *(float4*)(offset[g] + 4 * p) = {-MAGIC * first.x, -MAGIC * first.y, -MAGIC * second.x, -MAGIC * second.y};
        } else {
          *(float4*)(scale[g] + 4 * p) = *(const float4*)(block + NIBBLES);
          if (STRATEGY == MAGIC_FFMA2) *(float4*)(offset[g] + 4 * p) = *(const float4*)(block + OFFSETS);
        }
      }
    }
  }
};

// One thread's tokens of a span of K.
struct Tokens {
  alignas(16) u32 b[SPAN / 32];

  __device__ __forceinline__ Tokens(const u8* mine, int j, int span) {
    const u8* const tile = mine + j / 4 * SLOT_BLOCK + j % 4 * 512 + span * 8;
    if constexpr (SPAN == 128) {
      *(uint4*)b = *(const uint4*)tile;
    } else {
      *(uint2*)b = *(const uint2*)tile;
    }
  }
};

// Scales of the lane's two tokens in tiles j and j + 1, j even.
static __device__ __forceinline__ uint4 load_token_scales(const u8* mine, int j, int group) {
  return *(const uint4*)(mine + j / 4 * SLOT_BLOCK + NIBBLES + group * 128 + j % 4 / 2 * 64);
}

// Sums of a group: of one column of MMA tiles.
struct Parts {
  u32 of[ROW_TILES][4];
};

// A group of a span for one MMA tile.
static __device__ __forceinline__ void multiply(u32 (&sum)[4], const u32 (&a)[SPAN / 16], const Tokens& tokens,
                                                int group) {
#pragma unroll
  for (int k = group * GROUP; k < (group + 1) * GROUP; k += MMA_K) {
    const u32 *const i = a + k / 16, *const b = tokens.b + k / 32;
    if constexpr (MMA_K == 64) {
      int4_m16n8k64::mma(sum, {i[0], i[1], i[2], i[3]}, {b[0], b[1]});
    } else {
      int4_m16n8k32::mma(sum, {i[0], i[1]}, {b[0]});
    }
  }
}

// Into the sum itself, or into a group's.
template <class S>
static __device__ __forceinline__ void multiply(S& sum, u32 (&part)[4], const u32 (&a)[SPAN / 16], const Tokens& tokens,
                                                int group, const Start& start) {
  if constexpr (TOKEN_SCALES) {
#pragma unroll
    for (int e = 0; e < 4; e++) part[e] = start.c[e];
    multiply(part, a, tokens, group);
  } else {
    multiply(sum, a, tokens, group);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, CTAS_PER_SM)
    gemm(const u8* __restrict__ weights, const float* __restrict__ row_scale, const u8* x, const float* x_scale,
         const int* /*x_sum*/, const Out* __restrict__ bias, Out* out, u8* /*workspace*/, int m, int n, int k) {
  extern __shared__ __align__(128) u8 shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int k_blocks = k / 128;
  const Corner at = corner(blockIdx.x, m, n);
  launch_dependents();
  wait_for_previous_kernel();  // x and x_scale are not restrict, so that no load of them moves above this

  Loader loader;
  {
    const int block = threadIdx.x / LANES, copy_lane = threadIdx.x % LANES, token_blocks = (m + 31) / 32;
    const bool of_weights = block < ROW_BLOCKS;
    const u64 row_block = min(at.row / 32 + block, n / 32 - 1);
    const u64 token_block = min(at.token / 32 + block - ROW_BLOCKS, token_blocks - 1);
    loader.from = of_weights ? weights + row_block * k_blocks * WEIGHT_BLOCK : x + token_block * TOKEN_BLOCK;
    loader.from += MIDDLE + copy_lane * 16;
    loader.distance = of_weights ? WEIGHT_BLOCK : (u64)token_blocks * TOKEN_BLOCK;
    loader.to = shared_address(shared) + block * SLOT_BLOCK + copy_lane * 16;
#pragma unroll
    for (int i = 0; i < SCALE_PIECES; i++) {
      loader.scale_lane[i] = copy_lane + i * LANES < (of_weights ? WEIGHT_SCALES : TOKEN_SCALE_BYTES) / 16;
    }
    loader.left = k_blocks;
  }
#pragma unroll
  for (int s = 0; s < STAGES; s++) loader.stage(s * STAGE);

  const int warp_row = warp % (ROWS / WARP_ROWS) * WARP_ROWS, warp_token = warp / (ROWS / WARP_ROWS) * WARP_TOKENS;
  const u32 weight_blocks = warp_row / 32 * SLOT_BLOCK, token_blocks = (ROW_BLOCKS + warp_token / 32) * SLOT_BLOCK;
  const u8* const my_weights = held(shared, weight_blocks + lane * 16);
  const u8* const my_tokens = held(shared, token_blocks + lane * 16);
  const u8* const my_weight_scales = held(shared, weight_blocks + lane / 4 * (FP16_SCALES ? 4 : 16));
  const u8* const my_token_scales = held(shared, token_blocks + lane % 4 * 16);
  const Start start;
  Sum sum[ROW_TILES][TOKEN_TILES][4] = {};

  copy_wait<STAGES - 1>();
  __syncthreads();
  Weights operand;
#pragma unroll
  for (int t = 0; t < ROW_TILES; t++) operand.load(my_weights, t, 0);
  operand.load_scales(my_weight_scales, 0);
  Tokens tokens(my_tokens, 0, 0);
  uint4 scales[SPAN_GROUPS] = {};
#pragma unroll
  for (int g = 0; g < SPAN_GROUPS; g++) {
    if (TOKEN_SCALES) scales[g] = load_token_scales(my_token_scales, 0, g);
  }
  Parts parts[2];
  u32 slot = 0;
#pragma unroll 1
  do {
#pragma unroll
    for (int b = 0; b < K_BLOCKS * SPANS; b++) {
#pragma unroll
      for (int i = 0; i < COLUMN_GROUPS; i++) {
        const int j = i / SPAN_GROUPS, g = i % SPAN_GROUPS, span = b % SPANS;
        const bool last = i == COLUMN_GROUPS - 1, stage_ends = last && b == K_BLOCKS * SPANS - 1;
        const u32 here = slot + b / SPANS * K_BLOCK;
        if (stage_ends) {
          copy_wait<STAGES - 2>();  // the next stage has come; with the barrier, to every warp's share of it
          __syncthreads();
          loader.stage(slot);
          slot = slot == (STAGES - 1) * STAGE ? 0 : slot + STAGE;
        }
        // Behind the last stage this reads zeros, and nobody uses them.
        const u32 ahead = slot + (stage_ends ? 0 : (b + last) / SPANS) * K_BLOCK;
        const int span_ahead = (b + last) % SPANS;
        const Tokens now = tokens;
        if (g == SPAN_GROUPS - 1) tokens = Tokens(my_tokens + ahead, (j + 1) % TOKEN_TILES, span_ahead);
#pragma unroll
        for (int t = 0; t < ROW_TILES; t++) {
          multiply(sum[t][j], parts[i % 2].of[t], operand.a[t], now, g, start);
          if (last) operand.load(my_weights + ahead, t, span_ahead);
        }
        if (!TOKEN_SCALES) continue;
#pragma unroll
        for (int done = i - 1; done < i + last; done++) {
          if (done < 0) continue;
          const int column = done / SPAN_GROUPS, group = done % SPAN_GROUPS;
          uint4& pair = scales[group];
          const u32 of_tokens[2] = {column % 2 ? pair.z : pair.x, column % 2 ? pair.w : pair.y};
#pragma unroll
          for (int t = 0; t < ROW_TILES; t++) {
            add_group(sum[t][column], parts[done % 2].of[t], operand.scale[group] + 2 * t,
                      operand.offset[group] + 2 * t, of_tokens);
          }
          if (column % 2 == 0) continue;
          const bool of_next = column == TOKEN_TILES - 1;  // span
          pair = load_token_scales(my_token_scales + (of_next ? ahead : here), (column + 1) % TOKEN_TILES,
                                   (of_next ? span_ahead : span) * SPAN_GROUPS + group);
        }
        if (last) operand.load_scales(my_weight_scales + ahead, span_ahead);
      }
    }
  } while (loader.left > -STAGES * K_BLOCKS);

  const bool my_token = threadIdx.x < TOKENS && at.token + threadIdx.x < m;
  const float my_scale = FLOAT_SCALES ? 1.0f : my_token ? x_scale[at.token + threadIdx.x] : 0.0f;
  float rows[ROW_TILES][2], biases[ROW_TILES][2];
#pragma unroll
  for (int t = 0; t < ROW_TILES; t++) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int row = min(at.row + warp_row + 16 * t + 8 * r + lane / 4, n - 1);
      rows[t][r] = row_scale[row];
      biases[t][r] = bias ? from_out(bias[row]) : 0.0f;
    }
  }
  Out* const collected = (Out*)shared;
  float* const token_scale = (float*)(shared + TOKENS * OUT_STRIDE * 2);
  copy_wait<0>();   // of zeros beyond K
  __syncthreads();  // the stages have been read
  if (threadIdx.x < TOKENS) token_scale[threadIdx.x] = my_scale;
  __syncthreads();
#pragma unroll
  for (int j = 0; j < TOKEN_TILES; j++) {
    const int token = warp_token + 8 * j;
    const float2 scale = *(const float2*)(token_scale + token + lane % 4 * 2);
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++) {
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const float first = value(sum[t][j][2 * r]), second = value(sum[t][j][2 * r + 1]);
        const u32 pair = scaled_pair(first, second, scale, rows[t][r], biases[t][r]);
        const int row = warp_row + 16 * t + 8 * r + lane % 4 * 2;
        *(u32*)(collected + (token + lane / 4) * OUT_STRIDE + row) = transposed(pair);
      }
    }
  }
  __syncthreads();

  constexpr int TOKEN_LANES = ROWS / 8;  // that write one token's rows
  const int piece = threadIdx.x % TOKEN_LANES * 8;
  if (at.row + piece >= n) return;
#pragma unroll 4
  for (int token = threadIdx.x / TOKEN_LANES; token < min(TOKENS, m - at.token); token += THREADS / TOKEN_LANES) {
    const uint4 rows_of_token = *(const uint4*)(collected + token * OUT_STRIDE + piece);
    *(uint4*)(out + (u64)(at.token + token) * n + at.row + piece) = rows_of_token;
  }
}
