// How much CUDA-core work hides behind mma.sync. Every MMA warp holds a 64 x 32 accumulator tile (4 x 4 MMAs, 64 registers
// a thread) and repeats: four K-steps of 16 MMAs, then k passes of work over the tile, in place. Two K-steps' operands are
// distinct registers, used in turn.
//
//   PLACEMENT  SAME_WARPS   the MMA warps do the work on their own accumulators
//              OTHER_WARPS  as many more warps do it, on registers of their own
//   WITH_MMA   0: the same loop without the MMAs
//   TWO_SETS   the work reads the integer tile and accumulates into a second one (dequantisation); the tile restarts
#include "mma.cuh"
#include "probe.cuh"
#include "cuda_work.cuh"

#define SAME_WARPS 0
#define OTHER_WARPS 3

constexpr int THREADS = (PLACEMENT == OTHER_WARPS ? 2 : 1) * MMA_WARPS * 32;
constexpr int ACCUMULATORS = 64;

static __device__ void multiply(u32 (&c)[ACCUMULATORS], const u32 (&a)[2][4][4], const u32 (&b)[2][4][2], u32 first) {
#if WITH_MMA
#pragma unroll
  for (int step = 0; step < 4; step++) {
#pragma unroll
    for (int tile = 0; tile < 16; tile++) {
      u32(&d)[4] = *reinterpret_cast<u32(*)[4]>(&c[4 * tile]);
#if TWO_SETS
      if (step == 0) d[0] = d[1] = d[2] = d[3] = first;  // the C operand: one register quad for all tiles
#endif
      MMA::mma(d, a[step % 2][tile / 4], b[step % 2][tile % 4]);
    }
  }
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
probe(const u32* random, Stamp* stamps, u32* sink, int iterations, int k) {
  const int warp = threadIdx.x / 32;
  const u32 p = random[RANDOM_WORDS + 1], q = random[RANDOM_WORDS + 2], first = random[RANDOM_WORDS + 3];
  u32 result = 0;

  u64 start = 0;
  if (warp < MMA_WARPS) {
    u32 a[2][4][4], b[2][4][2], c[ACCUMULATORS];
#pragma unroll
    for (int i = 0; i < 8; i++) {
      load_operands(a[i / 4][i % 4], random, 4 * i);
      load_operands(b[i / 4][i % 4], random, 32 + 2 * i);
    }
    load_operands(c, random, 16);
#if TWO_SETS
    u32 f[ACCUMULATORS];
    load_operands(f, random, 16);
#elif PLACEMENT == SAME_WARPS
    u32 y[FRESH];
    load_operands(y, random, 64);
#endif
    __syncthreads();
    start = sm_cycles();
#pragma unroll 1
    for (int iteration = 0; iteration < iterations; iteration++) {
      multiply(c, a, b, first);
#if PLACEMENT == SAME_WARPS
#if TWO_SETS
      dequantise(f, c, k, p, q);
#else
      cuda_work(c, k, p, q, y);
#endif
#endif
    }
    result = fold(c);
#if TWO_SETS
    result ^= fold(f);
#endif
  } else {
#if PLACEMENT == OTHER_WARPS
    constexpr int OTHER_REGISTERS = 16;  // chains of a thread
    u32 x[OTHER_REGISTERS], y[FRESH];
    load_operands(x, random, 16);
    load_operands(y, random, 64);
    __syncthreads();
    start = sm_cycles();
    const int passes = k * (ACCUMULATORS / OTHER_REGISTERS);
#pragma unroll 1
    for (int iteration = 0; iteration < iterations; iteration++) cuda_work(x, passes, p, q, y);
    result = fold(x);
#endif
  }
  stamp(stamps, start);
  sink[blockIdx.x * blockDim.x + threadIdx.x] = result;
}
