// W4A16 GEMM for up to 64 tokens, where reading the weights is the whole cost: it aims at the time of a pure read.
//
// Weights are the MMA's operand A (16 rows), widened to fp16 or bf16 in registers; tokens are its eight columns. A CTA
// owns ROWS whole rows and TOKENS tokens at a time (blockIdx.y: which tokens) and walks over the row groups of the
// matrix (blockIdx.x, then + gridDim.x). Its warps are ROWS / 32 across the rows times the rest across K, interleaved
// by blocks of 128. Every warp loads for itself, through a ring of STAGES blocks that only it fills and empties: no
// CTA-wide barrier within a row group, and the ring runs on into the next. cp.async.bulk by one lane on sm_90 and
// later, else cp.async.
//
// Activations come straight from global memory: lane (g, c) takes 16 bytes of token g at k = 32 * quarter + 8 * c,
// which is operand B of the two MMAs of that quarter of a block (the packing has the same order, kernels/formats.py).
// They are requested AHEAD quarters before their use, across blocks and row groups, so that no wait for weights delays
// them. Warps that differ only in their rows ask for the same bytes at about the same time, and the next row group for
// the same again: the L1 serves them.
//
// Group scales multiply the fp32 sum of a group, once per accumulator; the row's scale and the bias come at the end,
// when the fp32 sums of the K warps are added in shared memory in ascending order: the same bits every time.
//
// Registers: TOKENS accumulators, as many group sums, AHEAD * TOKENS / 2 words of activations, 8 of weights; never more
// than CTAS CTAs of WARPS warps leave each other. Shared memory, counted below: WARPS * STAGES blocks of 2 to 2.25 KB
// and the partial sums. So CTAS of them are resident on an SM, which wants about 64 KB of weights on their way: 16
// warps x 2 stages, or two CTAs of 8 warps x 2.
#include "mma.cuh"
#include "async_copy.cuh"
#include "output.cuh"
#include "widen16.cuh"

constexpr int THREADS = 32 * WARPS, ROW_WARPS = ROWS / 32, K_WARPS = WARPS / ROW_WARPS;
constexpr int TOKEN_TILES = TOKENS / 8;
constexpr int SPAN = GROUP ? GROUP : 128;  // GROUP: K per group scale; 0: the row's scale alone
constexpr int QUARTERS = SPAN / 32;        // of a block, per group
constexpr int BLOCK_BYTES = 2048 + (GROUP ? 128 / SPAN * 64 : 0);
constexpr int AHEAD = TOKENS == 8 ? 4 : TOKENS == 32 && GROUP == 32 ? 1 : 2;  // as registers allow

constexpr int PARTIAL_STRIDE = ROWS + 4;  // words a token: the four columns of a lane row fall into different banks
constexpr int PARTIALS_AT = WARPS * STAGES * BLOCK_BYTES;
constexpr int BARRIERS_AT = PARTIALS_AT + K_WARPS * TOKENS * PARTIAL_STRIDE * 4;
constexpr int SHARED_BYTES = BARRIERS_AT + WARPS * STAGES * 8;
static_assert(WARPS % ROW_WARPS == 0 && THREADS % ROWS == 0, "whole warps across K; a thread keeps its row");

#if OUT_BF16
using Mma = mma_bf16_m16n8k16;
constexpr u32 EXPONENT = EXPONENT_BF16;
static __device__ __forceinline__ void widen(u32 word, u32 exponent, u32 (&a)[4]) { widen_bf16(word, exponent, a); }
#else
using Mma = mma_f16_m16n8k16;
constexpr u32 EXPONENT = EXPONENT_F16;
static __device__ __forceinline__ void widen(u32 word, u32 exponent, u32 (&a)[4]) { widen_f16(word, exponent, a); }
#endif

static __device__ __forceinline__ uint4 load_shared(u32 from) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(from));
  return x;
}

static __device__ __forceinline__ u32 load_shared_word(u32 from) {
  u32 x;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(from));
  return x;
}

// Volatile: the compiler would move it next to its use. Not past the L1.
static __device__ __forceinline__ uint4 load_activations(const u8* from) {
  uint4 x;
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(from));
  return x;
}

// The ring of one warp. Every member function is called by the whole warp.
struct Ring {
  u32 blocks, barriers;  // in shared memory
  int lane, stage;
  u32 parity;
  u64 policy;

  __device__ Ring(u8* shared, int warp, int lane)
      : blocks(shared_address(shared) + warp * STAGES * BLOCK_BYTES),
        barriers(shared_address(shared) + BARRIERS_AT + warp * STAGES * 8),
        lane(lane), stage(0), parity(0), policy(evict_first_policy()) {
#if __CUDA_ARCH__ >= 900
    if (lane < STAGES) mbarrier_init(barriers + 8 * lane, 1);
    mbarrier_init_fence();
    __syncwarp();
#endif
  }

  __device__ u32 current() const { return blocks + stage * BLOCK_BYTES; }

  // `wanted` false: nothing is left to request, but groups of cp.async are counted by step.
  __device__ __forceinline__ void request(int into, const u8* block, bool wanted) const {
#if __CUDA_ARCH__ >= 900
    if (wanted && lane == 0) {
      mbarrier_arrive_expect(barriers + 8 * into, BLOCK_BYTES);
      bulk_copy(blocks + into * BLOCK_BYTES, block, BLOCK_BYTES, barriers + 8 * into, policy);
    }
#else
    if (wanted) {
#pragma unroll
      for (int at = 0; at < BLOCK_BYTES; at += 512)
        if (at + 512 <= BLOCK_BYTES || at + lane * 16 < BLOCK_BYTES)
          copy_16_async(blocks + into * BLOCK_BYTES + at + lane * 16, block + at + lane * 16);
    }
    copy_commit();
#endif
  }

  __device__ __forceinline__ void wait() const {
#if __CUDA_ARCH__ >= 900
    mbarrier_wait(barriers + 8 * stage, parity);
#else
    copy_wait<STAGES - 1>();
    __syncwarp();
#endif
  }

  __device__ void advance() {
    if (++stage == STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Blocks of one warp in the order in which it multiplies them, over all row groups of its CTA.
struct Walk {
  const u8* weights;
  int row_block, last_row_block, row_step, k_block, first_k_block, k_blocks;

  __device__ bool left() const { return row_block - row_block % ROW_WARPS <= last_row_block && k_block < k_blocks; }
  // Beyond the matrix's rows, where ROWS does not divide them: the last block once more, ignored at the end.
  __device__ const u8* block() const {
    return weights + ((u64)min(row_block, last_row_block) * k_blocks + k_block) * BLOCK_BYTES;
  }
  __device__ void advance() {
    k_block += K_WARPS;
    if (k_block >= k_blocks) {
      k_block = first_k_block;
      row_block += row_step;
    }
  }
};

static __device__ __forceinline__ void add_group(u32 (&sum)[4], const u32 (&group)[4], float2 scales) {
#pragma unroll
  for (int i = 0; i < 4; i++)
    sum[i] = __float_as_uint(
        fmaf(__uint_as_float(group[i]), i < 2 ? scales.x : scales.y, __uint_as_float(sum[i])));
}

// This lane's activations of one quarter. `block`: token 0 at the first k of the block; `offsets`: of the lane's own.
static __device__ __forceinline__ void load_quarter(uint4 (&x)[TOKEN_TILES], const u8* block,
                                                    const u32 (&offsets)[TOKEN_TILES], int quarter) {
#pragma unroll
  for (int i = 0; i < TOKEN_TILES; i++) x[i] = load_activations(block + offsets[i] + 64 * quarter);
}

extern "C" __global__ void __launch_bounds__(THREADS, CTAS)
    gemm(const u8* __restrict__ weights, const float* __restrict__ row_scale, const void* x, const float*, const int*,
         const Out* __restrict__ bias, Out* out, u8*, int m, int n, int k) {
  extern __shared__ __align__(128) u8 shared[];
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);  // the same for all lanes, and known to be
  const int row_warp = warp / K_WARPS, k_warp = warp % K_WARPS;
  const int k_blocks = k / 128;

  launch_dependents();
  Ring ring(shared, warp, lane);
  Walk next{weights, (int)blockIdx.x * ROW_WARPS + row_warp, n / 32 - 1, (int)gridDim.x * ROW_WARPS,
            k_warp, k_warp, k_blocks};
#pragma unroll
  for (int stage = 0; stage < STAGES; stage++) {
    ring.request(stage, next.block(), next.left());
    next.advance();
  }

  const int first_token = blockIdx.y * TOKENS, tokens = min(m - first_token, TOKENS);
  const u8* first_x = static_cast<const u8*>(x) + (u64)first_token * k * 2;
  u32 offsets[TOKEN_TILES];
#pragma unroll
  for (int i = 0; i < TOKEN_TILES; i++)  // beyond M: the last token once more, ignored at the end
    offsets[i] = (u32)min(8 * i + g, tokens - 1) * k * 2 + 16 * c;
  const u32 exponent = in_register(EXPONENT, m);
  wait_for_previous_kernel();
  const u8* x_block = first_x + min(k_warp, k_blocks - 1) * 256;  // a warp without blocks may load, and not use, some
  uint4 ahead[AHEAD][TOKEN_TILES];
#pragma unroll
  for (int quarter = 0; quarter < AHEAD; quarter++) load_quarter(ahead[quarter], x_block, offsets, quarter);

  for (int first_row = blockIdx.x * ROWS; first_row < n; first_row += gridDim.x * ROWS) {
    const int row = first_row + threadIdx.x % ROWS;  // that this thread writes
    const float scale = row < n ? row_scale[row] : 0.0f;
    const float offset = bias && row < n ? from_out(bias[row]) : 0.0f;

    u32 sums[2][TOKEN_TILES][4];  // [row tile][token tile][row g: tokens 2c, 2c + 1; row g + 8: the same], fp32
#pragma unroll
    for (int t = 0; t < 2; t++)
#pragma unroll
      for (int i = 0; i < TOKEN_TILES; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sums[t][i][j] = 0;

#pragma unroll 1
    for (int k_block = k_warp; k_block < k_blocks; k_block += K_WARPS) {
      const u8* next_x_block = first_x + (k_block + K_WARPS < k_blocks ? k_block + K_WARPS : k_warp) * 256;
      ring.wait();
      const u32 block = ring.current();
      uint4 weights_of_half[2];  // [row tile]
      u32 group[2][TOKEN_TILES][4];
#pragma unroll
      for (int quarter = 0; quarter < 4; quarter++) {
        uint4 b[TOKEN_TILES];
#pragma unroll
        for (int i = 0; i < TOKEN_TILES; i++) b[i] = ahead[quarter % AHEAD][i];
        load_quarter(ahead[quarter % AHEAD], quarter + AHEAD < 4 ? x_block : next_x_block, offsets,
                     (quarter + AHEAD) % 4);
        if (quarter % 2 == 0)
#pragma unroll
          for (int t = 0; t < 2; t++)
            weights_of_half[t] = load_shared(block + (t * 2 + quarter / 2) * 512 + lane * 16);

#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
          for (int t = 0; t < 2; t++) {
            u32 a[4];
            widen(word_of(weights_of_half[t], 2 * (quarter % 2) + h), exponent, a);
#pragma unroll
            for (int i = 0; i < TOKEN_TILES; i++) {
              u32(&sum)[4] = GROUP ? group[t][i] : sums[t][i];
              if (GROUP && quarter % QUARTERS == 0 && h == 0) sum[0] = sum[1] = sum[2] = sum[3] = 0;
              const u32 columns[2] = {word_of(b[i], 2 * h), word_of(b[i], 2 * h + 1)};
              Mma::mma(sum, a, columns);
            }
          }
        if (GROUP && quarter % QUARTERS == QUARTERS - 1)
#pragma unroll
          for (int t = 0; t < 2; t++) {
            const float2 scales =
                f16x2_to_float2(load_shared_word(block + 2048 + (quarter / QUARTERS * 2 + t) * 32 + g * 4));
#pragma unroll
            for (int i = 0; i < TOKEN_TILES; i++) add_group(sums[t][i], group[t][i], scales);
          }
      }
      __syncwarp();  // the whole warp has read its stage
      ring.request(ring.stage, next.block(), next.left());
      next.advance();
      ring.advance();
      x_block = next_x_block;
    }

    float* partials = reinterpret_cast<float*>(shared + PARTIALS_AT);
    if (first_row != blockIdx.x * ROWS) __syncthreads();  // all have read the sums of the row group before
    float* mine = partials + k_warp * TOKENS * PARTIAL_STRIDE + 32 * row_warp + g;
#pragma unroll
    for (int t = 0; t < 2; t++)
#pragma unroll
      for (int i = 0; i < TOKEN_TILES; i++)
        if (8 * i + 2 * c < tokens) {
          float* at = mine + (8 * i + 2 * c) * PARTIAL_STRIDE + 16 * t;
          at[0] = __uint_as_float(sums[t][i][0]);
          at[PARTIAL_STRIDE] = __uint_as_float(sums[t][i][1]);
          at[8] = __uint_as_float(sums[t][i][2]);
          at[PARTIAL_STRIDE + 8] = __uint_as_float(sums[t][i][3]);
        }
    __syncthreads();
    for (int token = threadIdx.x / ROWS; token < tokens; token += THREADS / ROWS) {
      const float* at = partials + token * PARTIAL_STRIDE + threadIdx.x % ROWS;
      float sum = at[0];
#pragma unroll
      for (int i = 1; i < K_WARPS; i++) sum += at[i * TOKENS * PARTIAL_STRIDE];
      if (row < n) out[(u64)(first_token + token) * n + row] = scaled(sum, 1.0f, scale, offset);
    }
  }
}
