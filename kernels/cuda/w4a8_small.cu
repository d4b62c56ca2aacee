// W4A8 for 1 … 64 tokens: out[m, n] = x_scale[m] * row_scale[n] * sum_k x[m, k] * w[n, k] + bias[n]. Bound: reading w.
//
// Weights are the MMA's operand A (16 rows a tile), tokens its n = 8. A CTA owns ROWS whole rows of W, then its next
// ROWS; nothing is split between CTAs, and INT32 sums do not depend on order: the same bits every time.
//   WARPS      ROW_WARPS of them side by side over the rows, K split over the others: block kb of 128 belongs to warp
//              kb mod K_WARPS
//   STAGES     of each warp's own ring. It refills a stage as soon as it has multiplied it and waits for no other warp
//              until a row group ends and the sums are added in shared memory; by then the next group is on its way.
//              On an H100 about 64 KB in flight an SM are best
//   STAGED_X   1: activations travel in the ring. With ROW_WARPS > 1 in one of their own that the row warps share
//              0: from the L2 into registers, one block ahead; only rows of tokens that exist are touched. For up to 16
//                 tokens, whose fragments the registers hold twice
//   TOKENS     8, 16, 32 or 64, of which m are stored
//   GROUPED    1: g128i or, ROUNDED 1, g128r: two-level scale and zero applied while widening
//              0: channel
//
// Operand A is unsigned: the offset it carries is subtracted once per output, by means of x_sum. So channel widens in
// place (widen.cuh), by two instructions for eight weights.
//
// The ring is filled by cp.async.bulk from sm_90 on: one lane requests, an mbarrier a stage counts bytes. Before, all
// lanes copy 16 bytes at a time by cp.async. One CTA an SM; registers a thread: ROWS / ROW_WARPS * TOKENS / 32
// accumulators and 70 to 110. Launched as a dependent, the kernel requests weights while its predecessor still runs.
// weights and x need 16-byte alignment; weights and x are fetched fast at 128.
#include "mma.cuh"
#include "async_copy.cuh"
#include "output.cuh"
#include "row_quads.cuh"
#include "widen.cuh"

constexpr int THREADS = 32 * WARPS, K_WARPS = WARPS / ROW_WARPS;
constexpr int TILES = ROWS / 16 / ROW_WARPS;  // of 16 rows, a warp
constexpr int TOKEN_TILES = TOKENS / 8;
constexpr bool OWN_X = STAGED_X && ROW_WARPS == 1, SHARED_X = STAGED_X && ROW_WARPS > 1;
static_assert(ROWS % (16 * ROW_WARPS) == 0 && WARPS % ROW_WARPS == 0 && TOKENS % 8 == 0, "");
static_assert(!SHARED_X || STAGES > 2, "");  // a shared stage is refilled one step late

#include "weight_ring.cuh"

// Sums of the K warps: [COPIES][TOKENS][ROWS + 4], the 4 against bank conflicts. Two warps share a copy, one after the
// other, where a copy is large.
constexpr int COPIES = TOKENS < 32 || K_WARPS == 1 ? K_WARPS : (K_WARPS + 1) / 2, ROW_STRIDE = ROWS + 4;
constexpr int COPY_WORDS = TOKENS * ROW_STRIDE;

// With many tokens registers are scarce, and what a load takes from the L2 passes while the sums are written.
constexpr bool LOAD_ROWS_LATE = TOKENS >= 32;

constexpr int X_RING_AT = WARPS * STAGES * STAGE;
constexpr int SUMS_AT = X_RING_AT + SHARED_X * K_WARPS * STAGES * X_STAGE;
constexpr int TOKEN_AT = SUMS_AT + COPIES * COPY_WORDS * 4;  // x_scale, x_sum
constexpr int BARRIERS_AT = TOKEN_AT + TOKENS * 8;           // of the warps' stages; full and empty ones of shared X
constexpr int SHARED_BYTES = BARRIERS_AT + (WARPS + SHARED_X * 2 * K_WARPS) * STAGES * 8;

#if GROUPED
using Group = TwoLevelGroup;
static __device__ __forceinline__ Group group_of(const u8* stage, int tile, int g) {
  return Group::of(*reinterpret_cast<const u32*>(stage + scales_of(tile) + 4 * g));
}
static __device__ __forceinline__ void widen(u32 word, const Group& group, u32& first_row, u32& second_row) {
  widen_grouped(word, group, first_row, second_row);
}
#else
struct Group {};
static __device__ __forceinline__ Group group_of(const u8*, int, int) { return {}; }
static __device__ __forceinline__ void widen(u32 word, const Group&, u32& first_row, u32& second_row) {
  widen_in_place(word, first_row, second_row);
}
#endif

// Operand A of one tile's 64 of K: two MMA steps.
static __device__ __forceinline__ void widen(const uint4& w, const Group& group, u32 (&a)[2][4]) {
  widen(w.x, group, a[0][0], a[0][1]);
  widen(w.y, group, a[0][2], a[0][3]);
  widen(w.z, group, a[1][0], a[1][1]);
  widen(w.w, group, a[1][2], a[1][3]);
}

// The thread's index, read again: what is computed from it does not occupy registers throughout the loop over K.
static __device__ __forceinline__ int thread_index_again() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
gemm(const u8* weights, const float* row_scale, const u8* x, const float* x_scale, const int* x_sum, const Out* bias,
     Out* out, u8*, int m, int n, int k) {
  extern __shared__ __align__(128) u8 shared[];
  const int thread = threadIdx.x, lane = thread % 32, g = lane / 4, c = lane % 4;
  const int warp = __shfl_sync(~0u, thread / 32, 0);  // uniform, and the compiler knows
  const int k_warp = warp % K_WARPS, row_warp = warp / K_WARPS;
  const int k_blocks = k / 128, groups = (n + ROWS - 1) / ROWS;
  const int steps = (k_blocks - k_warp + K_WARPS - 1) / K_WARPS;  // of this warp in a row group; may be none
  const u64 row_block = (u64)k_blocks * BLOCK;
  const u64 policy = evict_first_policy();

  u8* const stages = shared + warp * (STAGES * STAGE);
  u8* const x_stages = SHARED_X ? shared + X_RING_AT + k_warp * (STAGES * X_STAGE) : stages + X_OFFSET;
  constexpr int X_STRIDE = SHARED_X ? X_STAGE : STAGE;
  const u32 barriers = shared_address(shared + BARRIERS_AT);
  const Ring ring{barriers + warp * (STAGES * 8)};
  const u32 x_full = barriers + (WARPS + 2 * k_warp) * (STAGES * 8), x_empty = x_full + STAGES * 8;
  const bool requests = Ring::requests(lane), requests_x = SHARED_X && row_warp == 0 && lane == 0;

  // Weights first: nobody has written them just now.
  launch_dependents();
  if (requests) ring.init();
#if __CUDA_ARCH__ >= 900
  if (requests_x) {
    for (int stage = 0; stage < STAGES; stage++) {
      mbarrier_init(x_full + 8 * stage, 1);
      mbarrier_init(x_empty + 8 * stage, ROW_WARPS);
    }
    mbarrier_init_fence();
  }
#endif
  __syncwarp();  // one lane initialises and requests; compute-sanitizer's racecheck warns of it without a barrier
  const int x_block = (m + 7) / 8 * X_TILE;  // bytes of 128 k of x
  WeightCursor next{};
  next.group = blockIdx.x;
  next.enter(row_warp, k_warp, k_blocks, n);
  const auto request_weights = [&](int stage) {
    const bool wanted = next.group < groups && next.step < steps;
    if (wanted) {
      if (requests) {
        ring.announce(stage, next.tiles * (NIBBLES + SCALES) + (OWN_X ? x_block : 0));
        next.request(ring, stage, shared_address(stages + stage * STAGE), weights, row_block, policy);
      }
      next.index += K_WARPS;
      if (++next.step == steps) {
        next.group += gridDim.x;
        next.enter(row_warp, k_warp, k_blocks, n);
      }
    }
    if (!OWN_X) ring.commit();
    return wanted;
  };
  bool filled[STAGES];
#pragma unroll
  for (int stage = 0; stage < STAGES; stage++) filled[stage] = request_weights(stage);
  if (SHARED_X) __syncthreads();  // other warps wait at these barriers
  else __syncwarp();

  wait_for_previous_kernel();
  int x_step = 0;  // every row group has the same activations
  const auto request_x = [&](int stage, bool wanted) {
    if (wanted) {
      const u8* from = x + (u32)((k_warp + x_step * K_WARPS) * x_block);
      const u32 to = shared_address(x_stages + stage * X_STRIDE);
      if (OWN_X && requests) ring.copy<X_STAGE>(stage, to, from, x_block);
#if __CUDA_ARCH__ >= 900
      if (requests_x) {
        mbarrier_arrive_expect(x_full + 8 * stage, x_block);
        bulk_copy(to, from, x_block, x_full + 8 * stage);
      }
#endif
      if (++x_step == steps) x_step = 0;
    }
    if (OWN_X) ring.commit();
  };
#pragma unroll
  for (int stage = 0; stage < STAGES; stage++) request_x(stage, STAGED_X && filled[stage]);

  // Not staged: each thread's own 16 bytes of operand B. Tokens that do not exist read the last one's again.
  u32 x_at[TOKEN_TILES];
  uint4 x_ahead[2][TOKEN_TILES];
#pragma unroll
  for (int t = 0; t < TOKEN_TILES; t++) {
    const int token = min(8 * t + g, m - 1);
    x_at[t] = token / 8 * X_TILE + token % 8 * 64 + c * 16;
  }
  const auto load_x = [&](int step) {
    const u8* from = x + (u32)((k_warp + step * K_WARPS) * x_block);
#pragma unroll
    for (int t = 0; t < TOKEN_TILES; t++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        x_ahead[half][t] = *reinterpret_cast<const uint4*>(from + x_at[t] + half * (X_TILE / 2));
  };
  if (!STAGED_X && steps > 0) load_x(0);

  u32* const sums = reinterpret_cast<u32*>(shared + SUMS_AT);
  float* const token_scale = reinterpret_cast<float*>(shared + TOKEN_AT);
  u32* const token_sum = reinterpret_cast<u32*>(token_scale + TOKENS);
  if (thread < m) token_scale[thread] = x_scale[thread], token_sum[thread] = x_sum[thread];

  int stage = 0;
  u32 parity = 0;
  bool owed = false;  // shared X: the stage before has weights for its next use, but not yet activations
#pragma unroll 1
  for (int group = blockIdx.x; group < groups; group += gridDim.x) {
    RowScales rows{};
    if (LOAD_ROWS_LATE) {
      if (const Share share(thread, group, m, n); share.exists) prefetch_l2(row_scale + share.row);
    } else {
      rows = RowScales::load(Share(thread, group, m, n), row_scale, bias);
    }
    u32 acc[TILES][TOKEN_TILES][4]{};
    const u32 index = first_block(group, row_warp, k_warp, k_blocks);

#pragma unroll 1
    for (int step = 0; step < steps; step++) {
      uint4 x_now[2][TOKEN_TILES];
      if (!STAGED_X) {
#pragma unroll
        for (int t = 0; t < TOKEN_TILES; t++) x_now[0][t] = x_ahead[0][t], x_now[1][t] = x_ahead[1][t];
        load_x(step + 1 < steps ? step + 1 : 0);
      }
#if __CUDA_ARCH__ >= 900
      if (SHARED_X) mbarrier_wait(x_full + 8 * stage, parity);
#endif
      ring.wait(stage, parity);
      const u8* w = stages + stage * STAGE + skew_of(index + step * K_WARPS);
#pragma unroll(TILES < 5 ? 2 : 1)  // what both halves need at once, five tiles have no registers for
      for (int half = 0; half < 2; half++) {
        u32 a[TILES][2][4];
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
          widen(*reinterpret_cast<const uint4*>(w + nibbles_of(tile) + half * (NIBBLES / 2) + 16 * lane),
                group_of(w, tile, g), a[tile]);
#pragma unroll
        for (int t = 0; t < TOKEN_TILES; t++) {
          const uint4 b = STAGED_X ? *reinterpret_cast<const uint4*>(x_stages + stage * X_STRIDE + t * X_TILE +
                                                                     half * (X_TILE / 2) + 16 * lane)
                                   : x_now[half][t];
#pragma unroll
          for (int tile = 0; tile < TILES; tile++) mma_u8s8_m16n8k32::mma(acc[tile][t], a[tile][0], {b.x, b.y});
#pragma unroll
          for (int tile = 0; tile < TILES; tile++) mma_u8s8_m16n8k32::mma(acc[tile][t], a[tile][1], {b.z, b.w});
        }
      }
      __syncwarp();  // all lanes have read the stage
      const bool refilled = request_weights(stage);
      if (OWN_X) request_x(stage, refilled);
#if __CUDA_ARCH__ >= 900
      if (SHARED_X) {
        warp_arrives(x_empty + 8 * stage, lane);
        const int before = stage ? stage - 1 : STAGES - 1;
        if (owed && requests_x) mbarrier_wait(x_empty + 8 * before, stage ? parity : parity ^ 1);
        request_x(before, owed);
        owed = refilled;
      }
#endif
      if (++stage == STAGES) stage = 0, parity ^= 1;
    }

    if (group != (int)blockIdx.x) __syncthreads();  // the sums of the row group before have been read
    const int again = thread_index_again();
    const Share share(again, group, m, n);
    if (LOAD_ROWS_LATE) rows = RowScales::load(share, row_scale, bias);
    // An accumulator's place: tokens 2 * c and the next, rows g and g + 8 (mma.sync, fragment C of m16n8).
    u32* const mine = sums + again / 32 % K_WARPS % COPIES * COPY_WORDS + again % 4 * 2 * ROW_STRIDE +
                      again / 32 / K_WARPS * (16 * TILES) + again % 32 / 4;
    const auto put = [&](bool add) {
#pragma unroll
      for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int t = 0; t < TOKEN_TILES; t++)
#pragma unroll
          for (int i = 0; i < 4; i++) {
            u32& sum = mine[16 * tile + 8 * t * ROW_STRIDE + i / 2 * 8 + i % 2 * ROW_STRIDE];
            sum = (add ? sum : 0) + acc[tile][t][i];
          }
    };
    const bool wanted = TOKEN_TILES > 1 || 2 * c < m;
    if (k_warp < COPIES && wanted) put(false);
    __syncthreads();
    if constexpr (COPIES < K_WARPS) {
      if (k_warp >= COPIES) put(true);
      __syncthreads();
    }
    if (share.exists) {
      const Widened w = GROUPED ? Widened::grouped() : Widened::in_place(share.row & 8);
      for (int token = share.token; token < m; token += Share::TOKENS_AT_ONCE) {
        const u32 offset = token_sum[token] << w.offset_shift;
        u32 sum[4] = {0u - offset, 0u - offset, 0u - offset, 0u - offset};
#pragma unroll
        for (int copy = 0; copy < COPIES; copy++) {
          const uint4 part =
              *reinterpret_cast<const uint4*>(sums + copy * COPY_WORDS + token * ROW_STRIDE + share.row % ROWS);
          sum[0] += part.x, sum[1] += part.y, sum[2] += part.z, sum[3] += part.w;
        }
        u32 bits[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
          bits[i] = scaled((float)(int)sum[i], token_scale[token], rows.scale[i] * w.factor, from_out(rows.bias[i]));
        *reinterpret_cast<uint2*>(out + (u64)token * n + share.row) = {bits[0] | bits[1] << 16,
                                                                       bits[2] | bits[3] << 16};
      }
    }
  }
}
