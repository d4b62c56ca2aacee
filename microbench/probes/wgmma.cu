// Throughput of wgmma alone: every warpgroup keeps a chain of 64 x N x K instructions on one accumulator set, B in shared
// memory (random, 128-byte swizzle, so free of bank conflicts), A in registers or in shared memory. One group of GROUP
// instructions is always in flight behind the one being issued.
#include "mma.cuh"
#include "warpgroup.cuh"
#include "wgmma.cuh"
#include "probe.cuh"

constexpr int ROW = 128;  // bytes of K per row: four K-steps

extern "C" __global__ void __launch_bounds__(WARPGROUPS * 128, 1)
probe(const u32* random, Stamp* stamps, u32* sink, int iterations) {
  extern __shared__ __align__(1024) u32 shared[];
  constexpr int words = (WGMMA::N + 64) * ROW / 4;
  for (int i = threadIdx.x; i < words; i += blockDim.x) shared[i] = operand(random, i);
  fence_async_shared();

  const u64 b = descriptor(shared);
#if A_FROM_REGISTERS
  u32 a[4][4];
#pragma unroll
  for (int step = 0; step < 4; step++) load_operands(a[step], random, 4 * step);
#else
  const u64 tile_a = descriptor(shared + WGMMA::N * ROW / 4);
#endif
  u32 c[WGMMA::ACCUMULATORS];
#pragma unroll
  for (int i = 0; i < WGMMA::ACCUMULATORS; i++) c[i] = 0;

  __syncthreads();
  const u64 start = sm_cycles();
#pragma unroll 1
  for (int iteration = 0; iteration < iterations; iteration++) {
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < GROUP; step++) {
#if A_FROM_REGISTERS
      WGMMA::mma<1>(c, a[step % 4], b + DESCRIPTOR_K_STEP * (step % 4));
#else
      WGMMA::mma<1>(c, tile_a + DESCRIPTOR_K_STEP * (step % 4), b + DESCRIPTOR_K_STEP * (step % 4));
#endif
    }
    wgmma_commit();
    wgmma_wait<1>();
  }
  wgmma_wait<0>();
  pin(c);
  stamp(stamps, start);
  sink[blockIdx.x * blockDim.x + threadIdx.x] = fold(c);
}
