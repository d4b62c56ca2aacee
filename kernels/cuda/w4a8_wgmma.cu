// out[M, N] = x[M, K] times the transpose of 4-bit weights [N, K] on Hopper: INT8 activations, weights widened to INT8 in
// registers, wgmma. The problem is transposed, out^T = W x^T: weights are operand A, from registers; activations are
// operand B, from shared memory.
//
// CTA       ROWS weight rows x TOKENS tokens at a time; persistent, tiles in an order that keeps both operands in L2.
//           WARPGROUPS consumer warpgroups side by side over the rows, each with ROW_TILES of 64 rows x TOKENS, and one
//           of producers, whose registers the consumers get.
// loads     bulk copies, STAGES stages of 128 of K, two producing warps: one requests weights, a block of 32 rows a lane,
//           and does not wait for the kernel before this one; the other requests the tokens, one piece.
// operands  A: a thread's packed words hold just what its registers of wgmma's operand A hold (kernels/formats.py): two
//           reads of 16 bytes a 64-row tile and 128 of K, no exchange between threads. Operand B lies in the order
//           ``int8_wgmma``: rows of 128 bytes, one a token, already swizzled, so that a plain copy needs no tensor map.
// scales    channel  codes stay where they lie in their nibbles, unsigned: the second row's are 16 times too large, and
//                    its scale holds the 1/16. Two instructions for eight weights.
//           g128i    code * scale + zero while widening, unsigned with offset 128. Five instructions for eight weights.
//           g128r    likewise, scales in sixteenths and sums rounded (ROUNDED 1). Eleven instructions.
//           Offsets become a multiple of the token's sum. Sums are INT32 over all of K (formats hold |sum| < 2^31).
// pipeline  BATCH wgmmas of 32 of K are in flight while the operand of the next ones is widened into other registers; a
//           stage is handed back when the wgmmas behind it have been issued and its own have ended. Warpgroups share
//           stages and nothing else: each starts when LAG stages more have landed than the one before needs. That sets
//           them apart by a thousand clocks or less, and epilogues run nearly together (NOTES, where clocks go).
// split K   SPLIT_K CTAs of a cluster share a tile, each has a part of K. At the end each gets its share of the tokens
//           from the others (st.async into its shared memory), adds and finishes it. Integers: the order is of no
//           consequence, and there is no workspace.
// last      SHARE_LAST: clusters of two, whose CTAs work on tiles of their own. The last round has tiles for half of
//           the CTAs or fewer: each pair shares one as above, and the round takes half as long. It comes once and ends
//           the kernel, so sums are sent where the stages lay and take no memory of their own.
// epilogue  scaled, with bias, 16 bit; turned by stmatrix into buffers of CHUNK tokens, which tensor copies take to out,
//           GROUP at once, while the next ones are scaled, the last under the next tile. BUFFERS: what stages leave room for.
//
// Bound: the Tensor Core, 4096 MAC a clock and SM; few tokens: memory. Registers: 64 * TOKENS * ROW_TILES / 128
// accumulators a thread, twice 4 * BATCH of operand A.
#include "mma.cuh"

#include "async_copy.cuh"
#include "cluster.cuh"
#include "output.cuh"
#include "output_tile.cuh"
#include "warpgroup.cuh"
#include "wgmma.cuh"
#include "widen.cuh"

constexpr int ROW_TILES = ROWS / (64 * WARPGROUPS);
constexpr int CONSUMERS = 128 * WARPGROUPS, THREADS = CONSUMERS + 128;
static_assert(ROWS == 64 * WARPGROUPS * ROW_TILES && TOKENS == WGMMA::N && STAGES > LAG * (WARPGROUPS - 1), "");

constexpr int NIBBLES = 2048, BLOCK = NIBBLES + (GROUPED ? 64 : 0);  // 32 rows x 128 of K (kernels/formats.py)
constexpr int TOKEN_TILE = 1024;                                      // 8 tokens x 128 of K
// Copies start where they start in memory, modulo a line: blocks of g128i begin in the middle of every second one.
constexpr int SLOT = GROUPED ? NIBBLES + 128 : NIBBLES;
constexpr int X_STAGE = TOKENS / 8 * TOKEN_TILE, W_STAGE = ROWS / 32 * SLOT;

constexpr int CLUSTER = SHARE_LAST ? 2 : SPLIT_K;
static_assert(CLUSTER == SPLIT_K || SPLIT_K == 1, "");
constexpr int SLICE = TOKENS / CLUSTER;               // tokens that a CTA finishes of a tile that it shares
constexpr int FINISHED = SHARE_LAST ? TOKENS : SLICE;  // of any tile, at most
static_assert(SLICE % 16 == 0 && SLICE * CLUSTER == TOKENS, "");

// Shared memory. Per warpgroup: buffers of outputs; scale and sum of the slice's tokens; what other CTAs send.
constexpr int CHUNK = SLICE % 32 == 0 ? 32 : 16, CHUNKS = ROW_TILES * FINISHED / CHUNK;
constexpr int OUT_BUFFER = CHUNK * 128;  // 64 rows of 16 bits a token, swizzled as the tensor map of out says
constexpr int W_AT = STAGES * X_STAGE, OUT_AT = (W_AT + STAGES * W_STAGE + 1023) / 1024 * 1024;
constexpr int TOKEN_SCALES = FINISHED * 8;
constexpr int SENT = ROW_TILES * SLICE * 64 * 4;  // by one CTA to one warpgroup of another
constexpr int ALL_SENT = SHARE_LAST ? 0 : WARPGROUPS * (SPLIT_K - 1) * SENT;  // beside the stages
static_assert(!SHARE_LAST || WARPGROUPS * SENT <= W_AT, "what is sent lies where tokens lay");
constexpr int BARRIERS = 8 * (2 * STAGES + 2 * WARPGROUPS);
constexpr int MOST_SHARED = 227 * 1024;  // of a CTA, compute capability 9.0
constexpr int shared_with(int buffers) {
  return OUT_AT + WARPGROUPS * (buffers * OUT_BUFFER + TOKEN_SCALES) + ALL_SENT + BARRIERS;
}
constexpr int fitting_buffers() {
  int buffers = CHUNKS;
  while (buffers > 1 && shared_with(buffers) > MOST_SHARED) buffers--;
  return buffers;
}
// Chunks that are sent together, each time behind a fence and a barrier: a tile's all or, of two groups that take turns,
// as many as fit. Where tiles have two row tiles and some are shared, chunks are left out and groups would be uneven.
constexpr int FIT = fitting_buffers(), GROUP = SHARE_LAST && ROW_TILES > 1 ? 1 : FIT == CHUNKS ? CHUNKS : FIT / 2;
constexpr int BUFFERS = GROUP == CHUNKS ? CHUNKS : 2 * GROUP, SHARED = shared_with(BUFFERS);  // what geometry() asks for
static_assert(GROUP > 0 && SHARED <= MOST_SHARED, "");
static_assert(!SHARE_LAST || ROW_TILES == 1 || SLICE / CHUNK % 2 == 0, "buffers of outputs take turns");
constexpr int SCALES_AT = OUT_AT + WARPGROUPS * BUFFERS * OUT_BUFFER;
constexpr int SENT_AT = SHARE_LAST ? 0 : SCALES_AT + WARPGROUPS * TOKEN_SCALES, BARRIERS_AT = SHARED - BARRIERS;

// An SM's 65536 registers: evenly at entry; then the producers keep few, and the consumers share the rest.
constexpr int ENTRY_REGISTERS = 65536 / THREADS / 8 * 8;
constexpr int PRODUCER_REGISTERS = 32;
constexpr int FREE_REGISTERS = (ENTRY_REGISTERS * (WARPGROUPS + 1) - PRODUCER_REGISTERS) / WARPGROUPS / 8 * 8;
constexpr int CONSUMER_REGISTERS = FREE_REGISTERS < 240 ? FREE_REGISTERS : 240;
static_assert(WARPGROUPS >= 2, "a single warpgroup would have to give registers back");

// Barriers of the ring: `full` has two arrivals, of weights and of tokens, `empty` one a consumer warp.
struct Ring {
  u32 barriers;
  __device__ __forceinline__ u32 full(int stage) const { return barriers + 8 * stage; }
  __device__ __forceinline__ u32 empty(int stage) const { return barriers + 8 * (STAGES + stage); }
  // Of a warpgroup: other CTAs' sums have come; other CTAs have read this one's. SHARE_LAST: the other CTA has read all
  // of its stages, for all warpgroups the first barrier.
  __device__ __forceinline__ u32 received(int warpgroup) const { return barriers + 8 * (2 * STAGES + warpgroup); }
  __device__ __forceinline__ u32 taken(int warpgroup) const { return received(WARPGROUPS + warpgroup); }
};

struct Stage {
  int index = 0;
  u32 parity = 0;
  __device__ __forceinline__ void next() {
    if (++index == STAGES) index = 0, parity ^= 1;
  }
  __device__ __forceinline__ int before() const { return index ? index - 1 : STAGES - 1; }
};

// The tiles of a CTA, and its part of their K.
struct Work {
  Raster raster;
  int k_blocks, rank, first_block, blocks, tile, tiles, stride;
  int owned;                  // SHARE_LAST: tiles of full rounds; a pair of CTAs shares each of the others
  bool shared = SPLIT_K > 1;  // this tile

  __device__ __forceinline__ Work(int m, int n, int k, int rank) : raster(m, n), k_blocks(k / 128), rank(rank) {
    part(SHARE_LAST ? 0 : rank, SPLIT_K);
    tile = blockIdx.x / SPLIT_K, stride = gridDim.x / SPLIT_K;
    tiles = raster.tiles();
    owned = SHARE_LAST ? tiles / stride * stride : tiles;
    if (SHARE_LAST) share();
  }
  __device__ __forceinline__ void part(int index, int of) {  // of K
    first_block = index * k_blocks / of;
    blocks = (index + 1) * k_blocks / of - first_block;
  }
  // geometry() and refuses() see to it that a tile is left over, and no more than there are pairs.
  __device__ __forceinline__ void share() {
    if (shared || tile < owned) return;
    shared = true, tile = owned + blockIdx.x / CLUSTER;
    part(rank, CLUSTER);
  }
  __device__ __forceinline__ bool more() const { return tile < tiles; }
  __device__ __forceinline__ Corner at() const { return raster.corner(tile); }
  __device__ __forceinline__ void next() {
    tile += stride;
    if (SHARE_LAST) share();
  }
};

// One warp; lanes beyond the tile's blocks of 32 rows request nothing.
static __device__ void produce_weights(Work work, const Ring& ring, u32 shared, const u8* weights, int n, int lane) {
  const bool read_once = work.raster.token_tiles == 1;
  const u64 policy = evict_first_policy();
  Stage stage;
  for (; work.more(); work.next()) {
    const int row_block = work.at().row / 32, count = min(ROWS / 32, n / 32 - row_block);
    const u32 first = (row_block + lane) * work.k_blocks + work.first_block;
    const u8* from = weights + (u64)first * BLOCK;
#pragma unroll 1
    for (int block = 0; block < work.blocks; block++, from += BLOCK) {
      mbarrier_wait(ring.empty(stage.index), stage.parity ^ 1);
      const u32 full = ring.full(stage.index);
      if (lane == 0) mbarrier_arrive_expect(full, count * BLOCK);
      __syncwarp();
      const u32 skew = GROUPED ? (first + block) % 2 * 64 : 0;
      const u32 to = shared + W_AT + stage.index * W_STAGE + lane * SLOT + skew;
      if (lane < count && read_once) bulk_copy(to, from, BLOCK, full, policy);
      if (lane < count && !read_once) bulk_copy(to, from, BLOCK, full);
      stage.next();
    }
  }
}

// One lane.
static __device__ void produce_tokens(Work work, const Ring& ring, u32 shared, const u8* x, int m) {
  const int token_tiles = (m + 7) / 8;
  const u64 block_bytes = (u64)token_tiles * TOKEN_TILE;
  Stage stage;
  for (; work.more(); work.next()) {
    const int first = work.at().token / 8, bytes = min(TOKENS / 8, token_tiles - first) * TOKEN_TILE;
    const u8* from = x + work.first_block * block_bytes + (u64)first * TOKEN_TILE;
#pragma unroll 1
    for (int block = 0; block < work.blocks; block++, from += block_bytes) {
      mbarrier_wait(ring.empty(stage.index), stage.parity ^ 1);
      mbarrier_arrive_expect(ring.full(stage.index), bytes);
      bulk_copy(shared + stage.index * X_STAGE, from, bytes, ring.full(stage.index));
      stage.next();
    }
  }
}

// What a thread reads of a stage for 64 rows: its words of the warp's 16 rows, and the scales of their group.
struct Packed {
  uint4 halves[2];
  u32 scales;
  __device__ __forceinline__ Packed(const u8* nibbles, const u8* group_scales, int lane)
      : halves{*(const uint4*)(nibbles + lane * 16), *(const uint4*)(nibbles + 512 + lane * 16)} {
    // volatile: the compiler would load the lowest byte a second time rather than mask it
    if (GROUPED) scales = *(const volatile u32*)(group_scales + lane / 4 * 4);
  }
};

#if GROUPED
using Group = TwoLevelGroup;
static __device__ __forceinline__ Group group_of(u32 scales) { return Group::of(scales); }
static __device__ __forceinline__ void widen(u32 word, const Group& group, u32& first_row, u32& second_row) {
  widen_grouped(word, group, first_row, second_row);
}
static __device__ __forceinline__ Widened widened(int) { return Widened::grouped(); }
#else
struct Group {};
static __device__ __forceinline__ Group group_of(u32) { return {}; }
static __device__ __forceinline__ void widen(u32 word, const Group&, u32& first_row, u32& second_row) {
  widen_in_place(word, first_row, second_row);
}
static __device__ __forceinline__ Widened widened(int second_row) { return Widened::in_place(second_row); }
#endif

// Operand A of a batch of wgmmas.
using Operand = u32[BATCH][4];
static __device__ __forceinline__ void widen(const Packed& packed, const Group& group, int first_step, Operand& a) {
#pragma unroll
  for (int i = 0; i < BATCH; i++) {
    const int step = first_step + i;
    const uint4& w = packed.halves[step / 2];
    widen(step % 2 ? w.z : w.x, group, a[i][0], a[i][1]);
    widen(step % 2 ? w.w : w.y, group, a[i][2], a[i][3]);
  }
#pragma unroll
  for (int i = 0; i < BATCH; i++) pin(a[i]);
}

struct Consumer {
  const Ring ring;
  u8* const shared;
  const u32 base;  // its 32-bit address
  const int warpgroup, thread, warp, lane;

  __device__ __forceinline__ void sync() const { barrier_sync(1 + warpgroup, 128); }

  __device__ __forceinline__ void hand_back(int stage) const { warp_arrives(ring.empty(stage), lane); }

  // sums = a tile's products over this CTA's part of K.
  __device__ __forceinline__ void multiply(u32 (&sums)[ROW_TILES][WGMMA::ACCUMULATORS], const Work& work, int row,
                                           Stage& stage) const {
    const int row_block = warpgroup * ROW_TILES * 2 + warp / 2;  // in the CTA's tile; two blocks further each row tile
    const u8* const my_weights = shared + W_AT + row_block * SLOT + warp % 2 * (NIBBLES / 2);
    const int scales_at = NIBBLES - warp % 2 * (NIBBLES / 2) + warp % 2 * 32;
    const int odd = ((row / 32 + row_block) * work.k_blocks + work.first_block) % 2;
    const u64 x = descriptor(shared);
    Operand operand[2];

    // `set`: the operand registers of its first batch.
    const auto step = [&](int block, int set) {
      mbarrier_wait(ring.full(stage.index), stage.parity);
      const u8* const w = my_weights + stage.index * W_STAGE + (GROUPED ? ((odd + block) & 1) * 64 : 0);
#pragma unroll
      for (int t = 0; t < ROW_TILES; t++) {
        const Packed packed(w + t * 2 * SLOT, w + t * 2 * SLOT + scales_at, lane);
        const Group group = group_of(packed.scales);
#pragma unroll
        for (int first = 0; first < 4; first += BATCH) {
          Operand& a = operand[(set + t * (4 / BATCH) + first / BATCH) % 2];
          widen(packed, group, first, a);
          wgmma_fence();
#pragma unroll
          for (int i = 0; i < BATCH; i++) {
            const u64 b = x + (u64)(stage.index * (X_STAGE / 16) + DESCRIPTOR_K_STEP * (first + i));
            if (first + i == 0) WGMMA::mma(sums[t], a[i], b, block);
            else WGMMA::mma<1>(sums[t], a[i], b);
          }
          wgmma_commit();
          wgmma_wait<1>();  // those of the other operand registers have ended
          if (t == 0 && first == 0 && block > 0) hand_back(stage.before());
        }
      }
      stage.next();
    };
    // An even number of batches, so that each has operand registers of its own.
    constexpr int BLOCKS = ROW_TILES * 4 / BATCH % 2 ? 2 : 1;
    int block = 0;
#pragma unroll 1
    for (; block + BLOCKS <= work.blocks; block += BLOCKS) {
#pragma unroll
      for (int i = 0; i < BLOCKS; i++) step(block + i, i);
    }
    if (BLOCKS == 2 && block < work.blocks) step(block, 0);
    wgmma_wait<0>();
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++) pin(sums[t]);
    hand_back(stage.before());
  }

  // Each CTA of the cluster ends with the whole sums of its slice of the tokens, in the first registers.
  __device__ __forceinline__ void exchange(u32 (&sums)[ROW_TILES][WGMMA::ACCUMULATORS], int rank, int round) const {
    const int sent_at = SENT_AT + warpgroup * (CLUSTER - 1) * SENT;
    const u32 received = ring.received(warpgroup), taken = ring.taken(SHARE_LAST ? 0 : warpgroup);
    if (thread == 0) mbarrier_arrive_expect(received, (CLUSTER - 1) * SENT);
    if (SHARE_LAST) {  // sums overwrite stages: those of both CTAs have been read when all their warps are here
      __syncwarp();
      if (lane == 0) mbarrier_arrive_in_cluster(address_in_cta(taken, 1 - rank));
      mbarrier_wait_in_cluster(taken, 0);
    } else if (round > 0) {
      mbarrier_wait_in_cluster(taken, (round - 1) & 1);
    }
#pragma unroll
    for (int r = 0; r < CLUSTER; r++) {
      if (r == rank) continue;
      const u32 to = address_in_cta(base + sent_at + (rank < r ? rank : rank - 1) * SENT + thread * 16, r);
      const u32 there = address_in_cta(received, r);
#pragma unroll
      for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
        for (int i = 0; i < SLICE / 2; i += 4) {
          const u32* s = sums[t] + r * (SLICE / 2) + i;
          store_16_async(to + (t * (SLICE / 8) + i / 4) * 2048, s[0], s[1], s[2], s[3], there);
        }
    }
#pragma unroll
    for (int r = 1; r < CLUSTER; r++) {
      if (r != rank) continue;
#pragma unroll
      for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
        for (int i = 0; i < SLICE / 2; i++) sums[t][i] = sums[t][r * (SLICE / 2) + i];
    }
    mbarrier_wait_in_cluster(received, SHARE_LAST ? 0 : round & 1);
    const u8* const from = shared + sent_at + thread * 16;
#pragma unroll
    for (int sender = 0; sender < CLUSTER - 1; sender++)
#pragma unroll
      for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
        for (int i = 0; i < SLICE / 2; i += 4) {
          const uint4 part = *(const uint4*)(from + sender * SENT + (t * (SLICE / 8) + i / 4) * 2048);
          sums[t][i] += part.x, sums[t][i + 1] += part.y, sums[t][i + 2] += part.z, sums[t][i + 3] += part.w;
        }
    if (SHARE_LAST) return;  // nothing more is sent
    sync();
    if (thread < SPLIT_K - 1) mbarrier_arrive_in_cluster(address_in_cta(taken, thread < rank ? thread : thread + 1));
  }
};

// What the epilogue of a tile wants from global memory, requested before the loop over K and not touched before its end:
// whatever used a value would wait for it there.
struct Scales {
  static constexpr int MINE = (FINISHED + 127) / 128;  // tokens of a thread
  float token_scale[MINE], row_scale[ROW_TILES][2];
  int token_sum[MINE];
  Out bias[ROW_TILES][2], biased;  // biased: all ones, or nothing

  __device__ __forceinline__ Scales(const Consumer& at, int row, int token, int m, int n, const float* row_scales,
                                    const float* x_scale, const int* x_sum, const Out* biases)
      : biased(biases ? 0xFFFF : 0) {
#pragma unroll
    for (int i = 0; i < MINE; i++) {
      const int mine = at.thread + 128 * i;
      const bool exists = mine < FINISHED && token + mine < m;
      token_scale[i] = exists ? x_scale[token + mine] : 0.0f;
      token_sum[i] = exists ? x_sum[token + mine] : 0;
    }
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const int mine = min(row + 64 * t + 16 * at.warp + 8 * r + at.lane / 4, n - 1);
        row_scale[t][r] = row_scales[mine];
        bias[t][r] = (biases ? biases : (const Out*)row_scales)[mine];
      }
  }
};

// Scales a warpgroup's sums, from tokens `token` on and rows `row` on, and sends them to out: of a shared tile, its slice.
static __device__ __forceinline__ void store(const Consumer& at, const u32 (&sums)[ROW_TILES][WGMMA::ACCUMULATORS],
                                             const Scales& scales, bool shared, int row, int token, int m, int n,
                                             const TensorMap& out) {
  // Of two tokens: both scales, then both sums, negative.
  float* const tokens = (float*)(at.shared + SCALES_AT + at.warpgroup * TOKEN_SCALES);
#pragma unroll
  for (int i = 0; i < Scales::MINE; i++) {
    const int mine = at.thread + 128 * i, place = mine / 2 * 4 + mine % 2;
    if (FINISHED % 128 && mine >= FINISHED) continue;
    tokens[place] = scales.token_scale[i];
    tokens[place + 2] = __int_as_float(-scales.token_sum[i]);
  }
  if (at.thread == 0) boxes_read<0>();
  at.sync();  // and the last tile's outputs have been read
  const u32 buffers = at.base + OUT_AT + at.warpgroup * (BUFFERS * OUT_BUFFER);
  // Eight tokens' pieces of 16 bytes a matrix: the warp's first eight rows, its last eight, then of the next tokens.
  const int turned = (at.lane / 16 * 8 + at.lane % 8) * 128 + (at.warp * 2 + at.lane / 8 % 2 ^ at.lane % 8) * 16;
  const float4* const my_tokens = (const float4*)tokens + at.lane % 4;  // four lanes on: the next eight
  // Chunks `first` … `last`, which lie in shared memory.
  const auto send = [&](int first, int last) {
    fence_async_shared();  // waits for what was written: better behind the next chunk's arithmetic
    if (at.thread == 0) boxes_read<0>();  // the group before: its buffers are written next
    at.sync();
    if (at.thread != 0) return;
#pragma unroll
    for (int i = first; i <= last; i++) {
      const int of_row = row + 64 * (i / (FINISHED / CHUNK)), of_token = token + i % (FINISHED / CHUNK) * CHUNK;
      if (of_row < n && of_token < m) store_box(out, of_token, of_row, buffers + i % BUFFERS * OUT_BUFFER);
    }
    boxes_commit();
  };
  int group = 0, lies = 0;  // the group's first chunk; the last one that lies in shared memory
#pragma unroll
  for (int t = 0; t < ROW_TILES; t++) {
    float4 ahead[2] = {my_tokens[0], my_tokens[4]};
#pragma unroll
    for (int chunk = 0; chunk < FINISHED / CHUNK; chunk++) {
      if (SHARE_LAST && shared && chunk == SLICE / CHUNK) break;
      u32 pairs[CHUNK / 8][2];  // of eight tokens, of rows that are eight apart
#pragma unroll
      for (int tile = 0; tile < CHUNK / 8; tile++) {
        const float4 of_tokens = ahead[tile % 2];
        const int of_slice = chunk * (CHUNK / 8) + tile;
        if (of_slice + 2 < FINISHED / 8) ahead[tile % 2] = my_tokens[4 * (of_slice + 2)];
        const u32 less[2] = {(u32)__float_as_int(of_tokens.z), (u32)__float_as_int(of_tokens.w)};
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const Widened w = widened(r);
          const u32* s = sums[t] + 4 * of_slice + 2 * r;
          pairs[tile][r] = scaled_pair((float)(int)(s[0] + (less[0] << w.offset_shift)),
                                       (float)(int)(s[1] + (less[1] << w.offset_shift)), {of_tokens.x, of_tokens.y},
                                       scales.row_scale[t][r] * w.factor,
                                       from_out(scales.bias[t][r] & scales.biased));
        }
      }
      const int index = t * (FINISHED / CHUNK) + chunk;
      if (index > 0 && index % GROUP == 0) send(group, lies), group = index;
#pragma unroll
      for (int tile = 0; tile < CHUNK / 8; tile += 2)
        store_transposed(buffers + index % BUFFERS * OUT_BUFFER + turned + tile * 8 * 128, pairs[tile][0], pairs[tile][1],
                         pairs[tile + 1][0], pairs[tile + 1][1]);
      lies = index;
    }
  }
  send(group, lies);
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    gemm(const u8* __restrict__ weights, const float* __restrict__ row_scale, const u8* x, const float* x_scale,
         const int* x_sum, const Out* __restrict__ bias, Out* /*out*/, u8* /*workspace*/, int m, int n, int k,
         const __grid_constant__ TensorMap out) {
  extern __shared__ __align__(1024) u8 shared[];
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);  // uniform, and the compiler knows
  const int warp = __shfl_sync(~0u, threadIdx.x / 32 % 4, 0), lane = threadIdx.x % 32;
  const u32 base = shared_address(shared);
  const Ring ring{base + BARRIERS_AT};
  const int rank = CLUSTER > 1 ? cluster_rank() : 0;
  Work work(m, n, k, rank);

  launch_dependents();
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) {
      mbarrier_init(ring.full(s), 2);
      mbarrier_init(ring.empty(s), CONSUMERS / 32);
    }
    for (int w = 0; CLUSTER > 1 && w < WARPGROUPS; w++) {
      mbarrier_init(ring.received(w), 1);
      mbarrier_init(ring.taken(w), SHARE_LAST ? CONSUMERS / 32 : SPLIT_K - 1);
    }
    mbarrier_init_fence();
  }
  if (CLUSTER > 1) cluster_start();
  else __syncthreads();

  if (warpgroup == WARPGROUPS) {
    keep_registers<PRODUCER_REGISTERS>();
    if (warp == 0) {
      produce_weights(work, ring, base, weights, n, lane);
    } else if (warp == 1 && lane == 0) {
      wait_for_previous_kernel();
      produce_tokens(work, ring, base, x, m);
    }
  } else {
    take_registers<CONSUMER_REGISTERS>();
    wait_for_previous_kernel();
    const Consumer consumer{ring, shared, base, warpgroup, (int)threadIdx.x % 128, warp, lane};
    Stage stage;
    if (LAG && warpgroup > 0 && work.more() && work.blocks > LAG * warpgroup) mbarrier_wait(ring.full(LAG * warpgroup), 0);
#pragma unroll 1
    for (int round = 0; work.more(); work.next(), round++) {
      const Corner at = work.at();
      const int row = at.row + warpgroup * (64 * ROW_TILES), token = at.token + (work.shared ? rank * SLICE : 0);
      const Scales scales(consumer, row, token, m, n, row_scale, x_scale, x_sum, bias);
      u32 sums[ROW_TILES][WGMMA::ACCUMULATORS];
      consumer.multiply(sums, work, at.row, stage);
      if constexpr (CLUSTER > 1) {
        if (work.shared) consumer.exchange(sums, rank, round);
      }
      store(consumer, sums, scales, work.shared, row, token, m, n, out);
    }
    if (consumer.thread == 0) boxes_read<0>();  // before shared memory goes
  }
  if (CLUSTER > 1) {
    __syncwarp();
    cluster_sync();  // nobody writes into the shared memory of a CTA that has gone
  }
}
