// Bandwidth: device memory (copy, read), L2 (the same small buffer again and again), shared memory; and an empty kernel.
// 16 bytes an access, neighbouring threads on neighbouring words.
#include "mma.cuh"
#include "probe.cuh"

constexpr int THREADS = 512;
constexpr int CHUNK = THREADS * IN_FLIGHT;  // vectors that a CTA has in flight at once, neighbours in memory

// Past the L1, which a second round would otherwise find warm. (The copy is 4 % slower so, on an H200, and needs it not.)
static __device__ uint4 load_past_l1(const uint4* from) {
  uint4 x;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(from));
  return x;
}

extern "C" __global__ void __launch_bounds__(THREADS) copy(uint4* to, const uint4* from, int chunks) {
  for (int chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const u64 first = (u64)chunk * CHUNK + threadIdx.x;
    uint4 x[IN_FLIGHT];
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; i++) x[i] = from[first + i * THREADS];
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; i++) to[first + i * THREADS] = x[i];
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) read(u32* sink, const uint4* from, int chunks, int rounds) {
  u32 sum = 0;
  for (int round = 0; round < rounds; round++) {
    for (int chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
      const u64 first = (u64)chunk * CHUNK + threadIdx.x;
      uint4 x[IN_FLIGHT];
#pragma unroll
      for (int i = 0; i < IN_FLIGHT; i++) x[i] = load_past_l1(from + first + i * THREADS);
#pragma unroll
      for (int i = 0; i < IN_FLIGHT; i++) sum ^= x[i].x ^ x[i].y ^ x[i].z ^ x[i].w;
    }
  }
  sink[blockIdx.x * THREADS + threadIdx.x] = sum;
}

// Every warp reads 512 consecutive bytes, the widest access without bank conflicts. All four words are used, or the
// compiler narrows the load; the address moves with the iteration, or it hoists it.
extern "C" __global__ void __launch_bounds__(1024) shared_read(const u32* random, Stamp* stamps, u32* sink, int iterations) {
  extern __shared__ uint4 tile[];
  constexpr int LOADS = 16;
  for (int i = threadIdx.x; i < 1024 + (LOADS + 1) * 32; i += blockDim.x) tile[i] = reinterpret_cast<const uint4*>(random)[i];
  u32 sum = 0;
  u32 address = (u32)__cvta_generic_to_shared(tile + (threadIdx.x & 1023));
  __syncthreads();
  const u64 start = sm_cycles();
#pragma unroll 1
  for (int iteration = 0; iteration < iterations; iteration++) {
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
      u32 a, b, c, d;
      asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                   : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                   : "r"(address + j * 512 + (iteration & 1) * 512)
                   : "memory");
      sum ^= a ^ b ^ c ^ d;
    }
  }
  stamp(stamps, start);
  sink[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

extern "C" __global__ void empty() {}
