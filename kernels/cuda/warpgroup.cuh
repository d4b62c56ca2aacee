// What surrounds wgmma on sm_90a: ordering, named barriers, registers, shared-memory matrix descriptors, and the way of
// 16-bit results to shared memory.
#pragma once

static __device__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
static __device__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int pending>
static __device__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// Ties registers to this point of the program: without it the compiler moves reads of accumulators above the wait.
template <int N>
static __device__ void pin(u32 (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(x[i])::"memory");
}

static __device__ void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
static __device__ void barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Registers of a thread, for warpgroups of different roles: all four warps of one call it. A multiple of 8, 24 … 256.
template <int count>
static __device__ __forceinline__ void keep_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
static __device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

// Four 8 x 8 matrices of 16 bits, transposed: lane 4 * g + c has elements (g, 2c) and (g, 2c + 1) of each; lanes 8 * i …
// 8 * i + 7 give the addresses of the eight columns of matrix i, 16 bytes each.
static __device__ __forceinline__ void store_transposed(u32 to, u32 m0, u32 m1, u32 m2, u32 m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(m0), "r"(m1),
               "r"(m2), "r"(m3)
               : "memory");
}

// Generic-proxy writes to shared memory become visible to the Tensor Core.
static __device__ void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// K-major tile, 128 bytes a row, 128-byte swizzle: 1024 bytes between groups of eight rows. One K-step of 32 bytes is
// two descriptor units further.
static __device__ u64 descriptor(const void* tile) {
  const u64 address = (u64)__cvta_generic_to_shared(tile);
  return ((address & 0x3FFFF) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}
constexpr u64 DESCRIPTOR_K_STEP = 2;
