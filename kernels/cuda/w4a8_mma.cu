// out[M, N] = x[M, K] times the transpose of 4-bit weights [N, K]: INT8 activations, weights widened to INT8 in
// registers, mma.sync m16n8k32. Any M and any GPU from compute capability 8.0 on.
//
// CTA       ROWS weight rows x TOKENS tokens, a warp for every 32 rows. Operand A is the weights and B the tokens, so a
//           tile of accumulators is 16 rows x 8 tokens of out's transpose.
// warp      WARP_ROWS x (32 * TOKENS / WARP_ROWS): TOKENS accumulators a thread. With 32 rows each weight is widened
//           once per CTA; 64 rows by half the tokens widen it twice and read a third less shared memory.
// loads     cp.async, STAGES stages of 128 of K: each warp its own block of weights with the groups' scales, the whole
//           CTA the tokens, which are one piece of global memory. Everything lies in fragment order already, so each
//           read of shared memory takes 16 bytes a lane, the lanes side by side: no conflict, no swizzle, no ldmatrix.
// pipeline  one barrier a stage, before its last batch of MMAs, by when every warp has read the stage. Tokens are
//           loaded one batch (BATCH_TILES tiles of accumulators) ahead of their MMAs; the weights of the next half
//           stage (g128: of the next stage) are loaded before the last batch of this one and widened behind it.
// scales    channel  codes stay where they lie in their nibbles (the second row's are 16 times too large), unsigned;
//                    the row's scale holds the 1/16, the offset 8 becomes a multiple of the token's sum: two
//                    instructions for eight weights.
//           g128i    code * scale + zero while widening, unsigned with offset 128: five instructions for eight weights.
//           g128r    likewise, scales in sixteenths and sums rounded: eleven.
//           float groups   16 times the value, signed; a group's INT32 sum starts at the bits of 1.5 * 2^23, so that
//                    FADD makes it an exact float (|sum| <= 2^21), and FFMA scales it. Both per accumulator and group.
//           Row and token scales, the token's sum and the bias are applied once, in the epilogue.
// epilogue  8 x 8 tiles are transposed by movmatrix and collected in the stages' memory: out is written 16 bytes a
//           thread, whole rows of the tile.
//
// A warp's instructions for 128 of K, 128 rows x 128 tokens (g128: 64), the compile tests hold them; the bound aimed at
// is the Tensor Core, 128 IMMA of 4096 MAC:
//             WARP_ROWS  IMMA  LDS  cp.async  widening  FADD + FFMA  addresses, predicates, loop
//   channel          32   128   36        12        32                                        < 48
//                    64   128   24        12        64                                        < 48
//   g128i            32   128   38        13        88                                        < 48
//   g128r            32   128   38        13       182                                        < 48
//   g128             32    64   22         9        52      64 + 64                           < 64
// Widening includes the groups' scales.
// Registers: 256 for 128 tokens and, with float groups, for more than 16, so 2 CTAs of 4 warps an SM; otherwise 168 (3)
// for 64 tokens, and with g128r for 32, and 128 (4) for fewer.
#include "mma.cuh"

#include "async_copy.cuh"
#include "output.cuh"
#include "output_tile.cuh"
#include "widen.cuh"

// GROUP: weights along K that share a scale, 0 for channel. TWO_LEVEL: of g128i or, ROUNDED, of g128r.
constexpr int GROUPS = GROUP ? 128 / GROUP : 0;
constexpr bool FLOAT_SCALES = GROUP && !TWO_LEVEL;

constexpr int WARPS = ROWS / 32, THREADS = 32 * WARPS;
constexpr int WARP_TOKENS = 32 * TOKENS / WARP_ROWS;
constexpr int ROW_TILES = WARP_ROWS / 16, TOKEN_TILES = WARP_TOKENS / 8;

constexpr int NIBBLES = 2048, BLOCK = NIBBLES + 64 * GROUPS;  // 32 rows x 128 of K (kernels/formats.py)
constexpr int TOKEN_TILE = 1024;                              // 8 tokens x 128 of K
constexpr int STAGE = TOKENS / 8 * TOKEN_TILE + WARPS * BLOCK;

// Weights are kept widened for a span of K: half a stage, or all of it where a group's sum needs it in one go.
constexpr int SPAN_HALVES = FLOAT_SCALES && GROUP == 128 ? 2 : 1;
constexpr int SPANS = 2 / SPAN_HALVES, STEPS = 2 * SPAN_HALVES;
constexpr int GROUPS_OF_SPAN = FLOAT_SCALES ? GROUPS / SPANS : TWO_LEVEL;
// Eight independent MMAs before one depends on another. That many tiles' sums of a float group are held, too; in groups
// of 32 no MMA depends on another, and half as many leave registers.
constexpr int BATCH_TILES = FLOAT_SCALES && GROUP == 32 ? 4 : 8;
constexpr int BATCH = BATCH_TILES / ROW_TILES < TOKEN_TILES ? BATCH_TILES / ROW_TILES : TOKEN_TILES;
constexpr int BATCHES = TOKEN_TILES / BATCH;

constexpr int OUT_STRIDE = ROWS + 8;  // of a token in the epilogue: sixteen bytes more, against bank conflicts
constexpr int EPILOGUE = TOKENS * (OUT_STRIDE * 2 + 8);
constexpr int SHARED = STAGES * STAGE > EPILOGUE ? STAGES * STAGE : EPILOGUE;  // what geometry() asks for
static_assert(WARP_ROWS == 32 || !TWO_LEVEL, "two-level scales would be applied twice to every weight");
static_assert(TOKEN_TILES % BATCH == 0 && TOKENS <= THREADS && STAGES >= 2, "");

// Registers bound it: the accumulators and about a hundred more; a float group's own sums and operands beside them.
constexpr int REGISTERS =
    TOKENS <= 16 ? 128 : TOKENS == 128 || FLOAT_SCALES ? 256 : TOKENS == 64 || ROUNDED ? 168 : 128;
constexpr int CTAS_PER_SM = 65536 / (THREADS * REGISTERS);

// Predicated, where an if() may become a branch that splits the loop.
static __device__ __forceinline__ void copy_16_async_if(bool wanted, u32 to, const void* from) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %2, 0; @p cp.async.cg.shared.global [%0], [%1], 16; }" ::"r"(to),
               "l"(from), "r"((int)wanted)
               : "memory");
}

// Pieces of 512 bytes of a stage that a warp copies, and the batches of MMAs among which they are spread: the first
// ones, never behind the barrier that ends the stage.
constexpr int PIECE = 512;
constexpr int TOKEN_PIECES = TOKENS * 128 / PIECE / WARPS, PIECES = TOKEN_PIECES + (GROUPS ? 5 : 4);
static_assert(WARPS * TOKEN_PIECES * PIECE == TOKENS * 128, "");
constexpr int COPYING = SPANS * BATCHES > 2 ? 2 : 1;
// A copy's address reaches 2048 bytes around its register.
constexpr int TOKEN_MIDDLE = TOKEN_PIECES / 2 * PIECE, WEIGHT_MIDDLE = 2 * PIECE;

// One thread's share of filling stages, in pieces between its MMAs. K is walked once.
struct Loader {
  const u8 *tokens, *weights;  // of the next stage, at the middle of the warp's pieces
  u64 token_step;              // bytes between blocks of K
  u32 token_to, weight_to;     // shared memory, in the first stage
  u32 slot;
  int token_pieces;  // that exist: beyond the last tile of 8 tokens there is no memory
  int left;          // blocks of K
  bool scale_lane;

  __device__ __forceinline__ void pieces(int first, int last) const {
    const bool any = left > 0;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
      if (i < first || i >= last) continue;
      if (i < TOKEN_PIECES) {
        const bool wanted = any && i / 2 * 2 < token_pieces;
        copy_16_async_if(wanted, token_to + slot + i * PIECE, tokens + (i * PIECE - TOKEN_MIDDLE));
      } else {
        const int w = i - TOKEN_PIECES;
        const bool wanted = any && (w < 4 || scale_lane);
        copy_16_async_if(wanted, weight_to + slot + w * PIECE, weights + (w * PIECE - WEIGHT_MIDDLE));
      }
    }
  }

  __device__ __forceinline__ void next() {
    copy_commit();
    tokens += token_step;
    weights += BLOCK;
    slot = slot == (STAGES - 1) * STAGE ? 0 : slot + STAGE;
    left--;
  }
};

constexpr float MAGIC = 12582912.0f;  // 1.5 * 2^23: adding an integer below 2^22 to its bits adds it to the float

// Constants of the float groups that the compiler takes for variables (k % 128 is zero, which it does not know): from
// literals it would rebuild an MMA's four registers of C for every MMA, and a LOP3's second literal for every LOP3.
struct Opaque {
  u32 magic[4], high_nibbles;
  __device__ __forceinline__ explicit Opaque(int k)
      : magic{bits() + (k & 1), bits() + (k & 2), bits() + (k & 4), bits() + (k & 8)},
        high_nibbles(0xF0F0F0F0u + (k & 16)) {}
  static __device__ __forceinline__ u32 bits() { return (u32)__float_as_int(MAGIC); }
};

// One thread's weights of a span: as they were packed, and as operand A.
struct Packed {
  uint4 nibbles[ROW_TILES][SPAN_HALVES];
  u32 scales[GROUPS_OF_SPAN ? GROUPS_OF_SPAN : 1][ROW_TILES];

  __device__ __forceinline__ void load(const u8* block, int span, int lane) {
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++) {
      const u8* tile = block + t / 2 * BLOCK;
#pragma unroll
      for (int h = 0; h < SPAN_HALVES; h++) {
        nibbles[t][h] = *(const uint4*)(tile + (t % 2 * 2 + span * SPAN_HALVES + h) * 512 + lane * 16);
      }
#pragma unroll
      for (int q = 0; q < GROUPS_OF_SPAN; q++) {
        if (TWO_LEVEL && span > 0) continue;
        const int group = span * GROUPS_OF_SPAN + q;
        // volatile: the compiler would load the lowest byte a second time rather than mask it
        scales[q][t] = *(const volatile u32*)(tile + NIBBLES + (group * 2 + t % 2) * 32 + lane / 4 * 4);
      }
    }
  }
};

struct Operand {
  u32 a[ROW_TILES][STEPS][4];
  float scale[FLOAT_SCALES ? GROUPS_OF_SPAN : 1][ROW_TILES][2];
  TwoLevelGroup group[ROW_TILES];  // two-level: of the whole stage, kept over its spans

  __device__ __forceinline__ void widen(const Packed& packed, int span, const Opaque& opaque) {
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++) {
      if (TWO_LEVEL && span == 0) group[t] = TwoLevelGroup::of(packed.scales[0][t]);
#pragma unroll
      for (int s = 0; s < STEPS; s++) {
        const uint4& w = packed.nibbles[t][s / 2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const u32 word = s % 2 ? (h ? w.w : w.z) : (h ? w.y : w.x);
          u32 &first = a[t][s][2 * h], &second = a[t][s][2 * h + 1];
          if constexpr (TWO_LEVEL) {
            widen_grouped(word, group[t], first, second);
          } else if constexpr (FLOAT_SCALES) {
            widen_times_16(word, opaque.high_nibbles, first, second);
          } else {
            widen_in_place(word, first, second);
          }
        }
      }
      if constexpr (FLOAT_SCALES) {
#pragma unroll
        for (int q = 0; q < GROUPS_OF_SPAN; q++) {
          const float2 rows = f16x2_to_float2(packed.scales[q][t]);
          scale[q][t][0] = rows.x, scale[q][t][1] = rows.y;
        }
      }
    }
  }
};

struct Tokens {
  uint4 words[BATCH][SPAN_HALVES];

  __device__ __forceinline__ void load(const u8* tile, int span, int batch, int lane) {
#pragma unroll
    for (int j = 0; j < BATCH; j++) {
#pragma unroll
      for (int h = 0; h < SPAN_HALVES; h++) {
        const int token_tile = batch * BATCH + j, half = span * SPAN_HALVES + h;
        words[j][h] = *(const uint4*)(tile + token_tile * TOKEN_TILE + half * 512 + lane * 16);
      }
    }
  }
};

static __device__ __forceinline__ void multiply_step(u32 (&sum)[4], const u32 (&a)[4], const uint4& words, int step) {
  const u32 b[2] = {step % 2 ? words.z : words.x, step % 2 ? words.w : words.y};
  if constexpr (FLOAT_SCALES) {
    mma_s8_m16n8k32::mma(sum, a, b);
  } else {
    mma_u8s8_m16n8k32::mma(sum, a, b);
  }
}

// Integer sums over all of K.
static __device__ __forceinline__ void multiply(u32 (&sum)[ROW_TILES][TOKEN_TILES][4], int batch,
                                                const Operand& weights, const Tokens& tokens, const Opaque&) {
#pragma unroll
  for (int s = 0; s < STEPS; s++) {
#pragma unroll
    for (int j = 0; j < BATCH; j++) {
#pragma unroll
      for (int t = 0; t < ROW_TILES; t++) {
        multiply_step(sum[t][batch * BATCH + j], weights.a[t][s], tokens.words[j][s / 2], s);
      }
    }
  }
}

// Float sums: an integer sum per group, scaled and added.
static __device__ __forceinline__ void multiply(float (&sum)[ROW_TILES][TOKEN_TILES][4], int batch,
                                                const Operand& weights, const Tokens& tokens, const Opaque& opaque) {
#pragma unroll
  for (int q = 0; q < GROUPS_OF_SPAN; q++) {
    constexpr int GROUP_STEPS = FLOAT_SCALES ? GROUP / 32 : 1;
    u32 part[BATCH][ROW_TILES][4];
#pragma unroll
    for (int s = 0; s < GROUP_STEPS; s++) {
#pragma unroll
      for (int j = 0; j < BATCH; j++) {
#pragma unroll
        for (int t = 0; t < ROW_TILES; t++) {
          const int step = q * GROUP_STEPS + s;
          if (s == 0) {
#pragma unroll
            for (int e = 0; e < 4; e++) part[j][t][e] = opaque.magic[e];
          }
          multiply_step(part[j][t], weights.a[t][step], tokens.words[j][step / 2], step);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < BATCH; j++) {
#pragma unroll
      for (int t = 0; t < ROW_TILES; t++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          float& f = sum[t][batch * BATCH + j][e];
          f = fmaf(__int_as_float((int)part[j][t][e]) - MAGIC, weights.scale[q][t][e / 2], f);
        }
      }
    }
  }
}

static __device__ __forceinline__ Widened widened(int second_row) {
  if (FLOAT_SCALES) return {0, 0.0625f};  // signed, so without an offset
  return TWO_LEVEL ? Widened::grouped() : Widened::in_place(second_row);
}

// A finished sum without the offset that unsigned weights carry.
static __device__ __forceinline__ float value(float sum, int, int) { return sum; }
static __device__ __forceinline__ float value(u32 sum, int token_sum, int second_row) {
  return (float)(int)(sum - ((u32)token_sum << widened(second_row).offset_shift));
}

template <bool is_float>
struct SumOf {
  using type = u32;
};
template <>
struct SumOf<true> {
  using type = float;
};

extern "C" __global__ void __launch_bounds__(THREADS, CTAS_PER_SM)
    gemm(const u8* __restrict__ weights, const float* __restrict__ row_scale, const u8* x, const float* x_scale,
         const int* x_sum, const Out* __restrict__ bias, Out* out, u8* /*workspace*/, int m, int n, int k) {
  extern __shared__ __align__(128) u8 shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int blocks = k / 128;
  const Corner at = corner(blockIdx.x, m, n);
  launch_dependents();
  wait_for_previous_kernel();  // x, x_scale, x_sum are not restrict, so that no load of them moves above this

  // Rows beyond n repeat the last block, tokens beyond the last tile of 8 are not loaded; neither is stored.
  const int token_tiles = (m + 7) / 8, share = warp * TOKEN_PIECES * PIECE + lane * 16;
  const u32 stages = shared_address(shared);
  Loader loader;
  loader.tokens = x + (u64)(at.token / 8) * TOKEN_TILE + share + TOKEN_MIDDLE;
  loader.token_step = (u64)token_tiles * TOKEN_TILE;
  loader.token_to = stages + share;
  loader.token_pieces = (token_tiles - at.token / 8) * (TOKEN_TILE / PIECE) - warp * TOKEN_PIECES;
  loader.weights = weights + (u64)min(at.row / 32 + warp, n / 32 - 1) * blocks * BLOCK + lane * 16 + WEIGHT_MIDDLE;
  loader.weight_to = stages + TOKENS / 8 * TOKEN_TILE + warp * BLOCK + lane * 16;
  loader.scale_lane = lane < (BLOCK - NIBBLES) / 16;
  loader.slot = 0;
  loader.left = blocks;
#pragma unroll
  for (int s = 0; s < STAGES - 1; s++) {
    loader.pieces(0, PIECES);
    loader.next();
  }

  const int warp_row = warp % (ROWS / WARP_ROWS) * WARP_ROWS, warp_token = warp / (ROWS / WARP_ROWS) * WARP_TOKENS;
  const u8* const my_weights = shared + TOKENS / 8 * TOKEN_TILE + warp_row / 32 * BLOCK;
  const u8* const my_tokens = shared + warp_token / 8 * TOKEN_TILE;
  using Sum = SumOf<FLOAT_SCALES>::type;
  Sum sum[ROW_TILES][TOKEN_TILES][4] = {};
  const Opaque opaque(k);

  copy_wait<STAGES - 2>();
  __syncthreads();
  Packed packed;
  Operand operand;
  Tokens tokens;
  packed.load(my_weights, 0, lane);
  tokens.load(my_tokens, 0, 0, lane);
  operand.widen(packed, 0, opaque);
  u32 slot = 0;
#pragma unroll 1
  for (int block = 0; block < blocks; block++) {
#pragma unroll
    for (int index = 0; index < SPANS * BATCHES; index++) {
      const int span = index / BATCHES, batch = index % BATCHES;
      const bool stage_ends = index == SPANS * BATCHES - 1, span_ends = batch == BATCHES - 1;
      // The slot that the previous stage left is refilled; nobody has read it since the barrier.
      if (index < COPYING) loader.pieces(index * PIECES / COPYING, (index + 1) * PIECES / COPYING);
      if (index == COPYING - 1) loader.next();
      if (stage_ends) {
        copy_wait<STAGES - 2>();  // the next stage has come; with the barrier, to every warp's share of it
        __syncthreads();
        slot = slot == (STAGES - 1) * STAGE ? 0 : slot + STAGE;
      }
      // Behind the last stage this reads what the slot happens to hold, and nobody uses it.
      const int next_span = (span + span_ends) % SPANS;
      if (span_ends) packed.load(my_weights + slot, next_span, lane);
      const Tokens now = tokens;
      tokens.load(my_tokens + slot, next_span, (batch + 1) % BATCHES, lane);
      multiply(sum, batch, operand, now, opaque);
      if (span_ends) operand.widen(packed, next_span, opaque);
    }
  }

  const bool my_token = threadIdx.x < TOKENS && at.token + threadIdx.x < m;
  const float my_scale = my_token ? x_scale[at.token + threadIdx.x] : 0.0f;
  const int my_sum = my_token && !FLOAT_SCALES ? x_sum[at.token + threadIdx.x] : 0;
  float rows[ROW_TILES][2], biases[ROW_TILES][2];
#pragma unroll
  for (int t = 0; t < ROW_TILES; t++) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int row = min(at.row + warp_row + 16 * t + 8 * r + lane / 4, n - 1);
      rows[t][r] = row_scale[row] * widened(r).factor;
      biases[t][r] = bias ? from_out(bias[row]) : 0.0f;
    }
  }
  Out* const collected = (Out*)shared;
  float* const token_scale = (float*)(shared + TOKENS * OUT_STRIDE * 2);
  int* const token_sum = (int*)(token_scale + TOKENS);
  __syncthreads();  // the stages have been read
  if (threadIdx.x < TOKENS) {
    token_scale[threadIdx.x] = my_scale;
    token_sum[threadIdx.x] = my_sum;
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < TOKEN_TILES; j++) {
    const int token = warp_token + 8 * j;
    const float2 scale = *(const float2*)(token_scale + token + lane % 4 * 2);
    const int2 offset = *(const int2*)(token_sum + token + lane % 4 * 2);
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++) {
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const float first = value(sum[t][j][2 * r], offset.x, r), second = value(sum[t][j][2 * r + 1], offset.y, r);
        const u32 pair = scaled_pair(first, second, scale, rows[t][r], biases[t][r]);
        const int row = warp_row + 16 * t + 8 * r + lane % 4 * 2;
        *(u32*)(collected + (token + lane / 4) * OUT_STRIDE + row) = transposed(pair);
      }
    }
  }
  __syncthreads();

  constexpr int LANES = ROWS / 8;  // that write one token's rows
  const int part = threadIdx.x % LANES * 8;
  if (at.row + part >= n) return;
#pragma unroll 4
  for (int token = threadIdx.x / LANES; token < min(TOKENS, m - at.token); token += THREADS / LANES) {
    const uint4 rows_of_token = *(const uint4*)(collected + token * OUT_STRIDE + part);
    *(uint4*)(out + (u64)(at.token + token) * n + at.row + part) = rows_of_token;
  }
}
