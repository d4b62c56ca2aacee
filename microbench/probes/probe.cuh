// What every probe shares. One CTA an SM. Every warp reads the SM's cycle counter right before and after its loop; the
// host takes the earliest start and the latest stop, which hold the slowest warp and nothing of the launch. Operands come
// from memory, different in every thread, and the results go back to it: nothing is a constant and nothing is dead.
#pragma once

struct Stamp {
  u64 start, stop;
};
constexpr int MAX_WARPS = 32;

static __device__ u64 sm_cycles() {
  u64 now;
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(now)::"memory");
  return now;
}

static __device__ void stamp(Stamp* stamps, u64 start) {
  const u64 stop = sm_cycles();
  if (threadIdx.x % 32 == 0) stamps[blockIdx.x * MAX_WARPS + threadIdx.x / 32] = {start, stop};
}

// RANDOM_WORDS: a power of two, the length of the operand buffer. Four words follow it: zero; p and q, the operands that
// all CUDA-core chains share; and the accumulators' first value.
static __device__ u32 operand(const u32* random, int index) {
  return random[(index * 1024 + blockIdx.x * 977 + threadIdx.x) & (RANDOM_WORDS - 1)];
}

template <int N>
static __device__ void load_operands(u32 (&x)[N], const u32* random, int first) {
#pragma unroll
  for (int i = 0; i < N; i++) x[i] = operand(random, first + i);
}

template <int N>
static __device__ u32 fold(const u32 (&x)[N]) {
  u32 sum = 0;
#pragma unroll
  for (int i = 0; i < N; i++) sum ^= x[i];
  return sum;
}
