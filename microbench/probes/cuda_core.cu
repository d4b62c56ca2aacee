// Throughput of one CUDA-core instruction: ILP independent chains a thread. "Fresh" source registers are those that the
// previous instruction did not read in the same operand slot. Three of them are more than the register file serves at full
// rate (an H100: 84 FFMA per clock and SM instead of 122); two are not, where they lie in different banks as they do here.
// x: the chain's register. p, q: shared by all chains. y, z: registers of the chain's own that it only reads.
#include "mma.cuh"
#include "probe.cuh"

struct ffma {
  static __device__ void apply(u32& x, u32 p, u32 q, u32, u32) { asm volatile("fma.rn.f32 %0, %0, %1, %2;" : "+r"(x) : "r"(p), "r"(q)); }
};
struct ffma_two_fresh {
  static __device__ void apply(u32& x, u32 p, u32, u32 y, u32) { asm volatile("fma.rn.f32 %0, %1, %2, %0;" : "+r"(x) : "r"(y), "r"(p)); }
};
struct ffma_three_fresh {
  static __device__ void apply(u32& x, u32, u32, u32 y, u32 z) { asm volatile("fma.rn.f32 %0, %1, %2, %0;" : "+r"(x) : "r"(y), "r"(z)); }
};
struct fadd {
  static __device__ void apply(u32& x, u32 p, u32, u32, u32) { asm volatile("add.rn.f32 %0, %0, %1;" : "+r"(x) : "r"(p)); }
};
struct fmul {
  static __device__ void apply(u32& x, u32 p, u32, u32, u32) { asm volatile("mul.rn.f32 %0, %0, %1;" : "+r"(x) : "r"(p)); }
};
struct hfma2 {
  static __device__ void apply(u32& x, u32 p, u32 q, u32, u32) { asm volatile("fma.rn.f16x2 %0, %0, %1, %2;" : "+r"(x) : "r"(p), "r"(q)); }
};
struct imad {
  static __device__ void apply(u32& x, u32 p, u32 q, u32, u32) { asm volatile("mad.lo.s32 %0, %0, %1, %2;" : "+r"(x) : "r"(p), "r"(q)); }
};
struct lop3 {  // x ^ (p & q): a table that ptxas cannot merge with the next one's unless it knows p and q
  static __device__ void apply(u32& x, u32 p, u32 q, u32, u32) { asm volatile("lop3.b32 %0, %1, %2, %0, 0x6a;" : "+r"(x) : "r"(p), "r"(q)); }
};
struct shf {
  static __device__ void apply(u32& x, u32 p, u32 q, u32, u32) { asm volatile("shf.l.wrap.b32 %0, %0, %1, %2;" : "+r"(x) : "r"(p), "r"(q)); }
};
struct prmt {
  static __device__ void apply(u32& x, u32 p, u32 q, u32, u32) { asm volatile("prmt.b32 %0, %0, %1, %2;" : "+r"(x) : "r"(p), "r"(q)); }
};
struct i2f {
  static __device__ void apply(u32& x, u32, u32, u32, u32) { asm volatile("cvt.rn.f32.s32 %0, %0;" : "+r"(x)); }
};

constexpr int STEPS = OPERATIONS_PER_ITERATION / ILP;

extern "C" __global__ void probe(const u32* random, Stamp* stamps, u32* sink, int iterations) {
  u32 x[ILP], y[ILP], z[ILP];
  load_operands(x, random, 0);
  load_operands(y, random, ILP);
  load_operands(z, random, 2 * ILP);
  const u32 p = random[RANDOM_WORDS + 1], q = random[RANDOM_WORDS + 2];

  __syncthreads();
  const u64 start = sm_cycles();
#pragma unroll 1
  for (int iteration = 0; iteration < iterations; iteration++) {
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
#pragma unroll
      for (int i = 0; i < ILP; i++) OPERATION::apply(x[i], p, q, y[i], z[i]);
    }
  }
  stamp(stamps, start);
  sink[blockIdx.x * blockDim.x + threadIdx.x] = fold(x);
}
