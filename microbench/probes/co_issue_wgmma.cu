// How much CUDA-core work hides behind wgmma. Two consumer warpgroups each hold a 64 x N accumulator tile, A in registers,
// B in shared memory, and repeat: four K-steps of wgmma (128 bytes of K), wait, k passes of work over the tile.
//
//   PLACEMENT  AT_ISSUE        the Tensor Core is handed to the other warpgroup right after the four wgmma are issued
//              AFTER_COMPLETE  ... after the last of them is complete
//              NO_HANDOVER     the warpgroups run free
//              OTHER_WARPS     the same amount of work is done by a third warpgroup, on registers of its own
//   WITH_MMA   0: the same loop and barriers without the wgmma, for the time of the work alone
//   TWO_SETS   the work reads the integer tile and accumulates into a second, float one (dequantisation)
//
// Registers: N = 256 needs 128 accumulators, 16 of A and some 20 more. Three warpgroups start with 168 a thread, of which
// the working one hands 80 on (setmaxnreg). A fourth warpgroup would not fit; one warp a scheduler with 16 independent
// chains fills every pipe as well.
#include "mma.cuh"
#include "warpgroup.cuh"
#include "wgmma.cuh"
#include "probe.cuh"
#include "cuda_work.cuh"

#define AT_ISSUE 0
#define AFTER_COMPLETE 1
#define NO_HANDOVER 2
#define OTHER_WARPS 3

constexpr int ROW = 128;  // bytes of K per row: four K-steps
constexpr int CONSUMERS = 2;
constexpr int THREADS = PLACEMENT == OTHER_WARPS ? 384 : 256;
constexpr bool HANDOVER = PLACEMENT == AT_ISSUE || PLACEMENT == AFTER_COMPLETE;

static __device__ void multiply(u32 (&c)[WGMMA::ACCUMULATORS], const u32 (&a)[4][4], u64 b) {
#if WITH_MMA
  pin(c);
  wgmma_fence();
  WGMMA::mma<TWO_SETS ? 0 : 1>(c, a[0], b);
#pragma unroll
  for (int step = 1; step < 4; step++) WGMMA::mma<1>(c, a[step], b + DESCRIPTOR_K_STEP * step);
  wgmma_commit();
#endif
}

static __device__ void wait(u32 (&c)[WGMMA::ACCUMULATORS]) {
#if WITH_MMA
  wgmma_wait<0>();
#endif
  pin(c);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
probe(const u32* random, Stamp* stamps, u32* sink, int iterations, int k) {
  extern __shared__ __align__(1024) u32 shared[];
  for (int i = threadIdx.x; i < WGMMA::N * ROW / 4; i += blockDim.x) shared[i] = operand(random, i);
  fence_async_shared();
  const u64 b = descriptor(shared);
  const int warpgroup = threadIdx.x / 128;
  const u32 p = random[RANDOM_WORDS + 1], q = random[RANDOM_WORDS + 2];
  u32 result = 0;

  u64 start = 0;
  if (warpgroup < CONSUMERS) {
#if PLACEMENT == OTHER_WARPS
    asm volatile("setmaxnreg.inc.sync.aligned.u32 208;");
#endif
    u32 a[4][4], c[WGMMA::ACCUMULATORS];
#pragma unroll
    for (int step = 0; step < 4; step++) load_operands(a[step], random, 4 * step);
    load_operands(c, random, 16);
#if TWO_SETS
    u32 f[WGMMA::ACCUMULATORS];
    load_operands(f, random, 16);
#elif PLACEMENT != OTHER_WARPS
    u32 y[FRESH];
    load_operands(y, random, 64);
#endif
    __syncthreads();
    start = sm_cycles();
    if (HANDOVER && warpgroup == 1) barrier_arrive(1, 256);
#pragma unroll 1
    for (int iteration = 0; iteration < iterations; iteration++) {
      if (HANDOVER) barrier_sync(1 + warpgroup, 256);
      multiply(c, a, b);
      if (PLACEMENT == AT_ISSUE) barrier_arrive(2 - warpgroup, 256);
      wait(c);
      if (PLACEMENT == AFTER_COMPLETE) barrier_arrive(2 - warpgroup, 256);
#if PLACEMENT != OTHER_WARPS
#if TWO_SETS
      dequantise(f, c, k, p, q);
#else
      cuda_work(c, k, p, q, y);
#endif
#endif
    }
    if (HANDOVER && warpgroup == 0) barrier_sync(1, 256);  // the second warpgroup's last arrival is not left pending
    result = fold(c);
#if TWO_SETS
    result ^= fold(f);
#endif
  } else {
#if PLACEMENT == OTHER_WARPS
    asm volatile("setmaxnreg.dec.sync.aligned.u32 88;");
    constexpr int OTHER_REGISTERS = 16;  // chains of a thread
    u32 x[OTHER_REGISTERS], y[FRESH];
    load_operands(x, random, 16);
    load_operands(y, random, 64);
    __syncthreads();
    start = sm_cycles();
    const int passes = k * (CONSUMERS * WGMMA::ACCUMULATORS / OTHER_REGISTERS);
#pragma unroll 1
    for (int iteration = 0; iteration < iterations; iteration++) cuda_work(x, passes, p, q, y);
    result = fold(x);
#endif
  }
  stamp(stamps, start);
  sink[blockIdx.x * blockDim.x + threadIdx.x] = result;
}
