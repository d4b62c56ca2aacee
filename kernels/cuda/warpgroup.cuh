// What surrounds wgmma on sm_90a: ordering, named barriers, shared-memory matrix descriptors.
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

// Generic-proxy writes to shared memory become visible to the Tensor Core.
static __device__ void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// K-major tile, 128 bytes a row, 128-byte swizzle: 1024 bytes between groups of eight rows. One K-step of 32 bytes is
// two descriptor units further.
static __device__ u64 descriptor(const void* tile) {
  const u64 address = (u64)__cvta_generic_to_shared(tile);
  return ((address & 0x3FFFF) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}
constexpr u64 DESCRIPTOR_K_STEP = 2;
