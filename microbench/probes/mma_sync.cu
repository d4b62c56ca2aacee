// Throughput of one mma.sync instruction: ILP independent accumulator tiles a warp, each a chain of dependent MMAs on
// operands of its own. ptxas hoists the conversions of an emulated instruction out of the loop, and merges what follows,
// if it may; so where the hardware lacks the instruction, LIVE_OPERANDS adds to every operand in every step a word that
// is zero in memory, which only the host knows. (An XOR would not do: two of them cancel.)
#include "mma.cuh"
#include "probe.cuh"

constexpr int STEPS = MMAS_PER_ITERATION / ILP;

extern "C" __global__ void probe(const u32* random, Stamp* stamps, u32* sink, int iterations) {
  u32 a[ILP][MMA::A], b[ILP][MMA::B], c[ILP][MMA::C];
#pragma unroll
  for (int i = 0; i < ILP; i++) {
    load_operands(a[i], random, 16 * i);
    load_operands(b[i], random, 16 * i + 4);
#pragma unroll
    for (int j = 0; j < MMA::C; j++) c[i][j] = 0;
  }
#if LIVE_OPERANDS
  const u32 zero = random[RANDOM_WORDS];
#endif

  __syncthreads();
  const u64 start = sm_cycles();
#pragma unroll 1
  for (int iteration = 0; iteration < iterations; iteration++) {
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
#pragma unroll
      for (int i = 0; i < ILP; i++) {
#if LIVE_OPERANDS
#pragma unroll
        for (int j = 0; j < MMA::A; j++) a[i][j] += zero;
#pragma unroll
        for (int j = 0; j < MMA::B; j++) b[i][j] += zero;
#endif
        MMA::mma(c[i], a[i], b[i]);
      }
    }
  }
  stamp(stamps, start);

  u32 result = 0;
#pragma unroll
  for (int i = 0; i < ILP; i++) result ^= fold(c[i]);
  sink[blockIdx.x * blockDim.x + threadIdx.x] = result;
}
