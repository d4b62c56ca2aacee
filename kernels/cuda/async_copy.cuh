// Copies from global to shared memory that run beside the threads, and what orders them. Addresses of shared memory are
// 32 bit (shared_address). All of it is for sm_80 and later unless said; 16-byte alignment everywhere.
//
//   cp.async        each thread copies 16 bytes, past the L1; copies are counted in groups, per thread
//   cp.async.bulk   sm_90: one thread copies any multiple of 16 bytes; an mbarrier counts the bytes that have landed
//   griddepcontrol  sm_90: programmatic dependent launch; nothing elsewhere, and nothing in an ordinary launch
#pragma once

static __device__ __forceinline__ u32 shared_address(const void* pointer) {
  return (u32)__cvta_generic_to_shared(pointer);
}

// For what is read once: leaves the L2 before activations and outputs do.
static __device__ __forceinline__ u64 evict_first_policy() {
  u64 policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

static __device__ __forceinline__ void prefetch_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// Without an L2 policy: ptxas of CUDA 13.0 puts a constant one into odd uniform registers, an illegal instruction.
static __device__ __forceinline__ void copy_16_async(u32 to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
static __device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most `pending` groups of this thread are under way. Other threads see the data only after a barrier.
template <int pending>
static __device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// One thread initialises barriers, then calls the fence once; others may use them after a barrier between the threads.
static __device__ __forceinline__ void mbarrier_init(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
static __device__ __forceinline__ void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// An arrival that announces `bytes` of bulk copies: the phase ends when all arrivals have come and all bytes landed.
static __device__ __forceinline__ void mbarrier_arrive_expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
static __device__ __forceinline__ void mbarrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// A warp has read what the barrier protects, into registers that have been used since. One lane arrives for all, behind
// a barrier of the warp, which often costs nothing: ptxas leaves it out where it knows that the warp is together.
// (compute-sanitizer's racecheck does not see that order: kernels/NOTES.md.)
static __device__ __forceinline__ void warp_arrives(u32 barrier, int lane) {
  __syncwarp();
  if (lane == 0) mbarrier_arrive(barrier);
}

// Until the phase of this parity has ended: 0 for the first, 1 for the second, 0 for the third …
static __device__ __forceinline__ void mbarrier_wait(u32 barrier, u32 parity) {
  u32 ended;
  do {
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(ended)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (!ended);
}

static __device__ __forceinline__ void bulk_copy(u32 to, const void* from, u32 bytes, u32 barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}
static __device__ __forceinline__ void bulk_copy(u32 to, const void* from, u32 bytes, u32 barrier, u64 policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}

// How a matrix of 16-bit elements lies in global memory: CUtensorMap, made on the host (kernels/tensor_map.py), a kernel's
// parameter (const __grid_constant__).
struct __align__(64) TensorMap {
  u64 opaque[16];
};

// Box of the matrix whose first element is (row, column), from shared memory, rows swizzled as the map says; what lies
// beyond the matrix is left out. One thread, behind fence_async_shared() of those who wrote and a barrier; copies are
// counted in groups, per thread.
static __device__ __forceinline__ void store_box(const TensorMap& map, int row, int column, u32 from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(column),
               "r"(row), "r"(from)
               : "memory");
}
static __device__ __forceinline__ void boxes_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Until all but the last `pending` groups of this thread have been read from shared memory.
template <int pending>
static __device__ __forceinline__ void boxes_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}

// From here on the next kernel of the stream may start on SMs that have room for it.
static __device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Until the kernels before this one have ended and their writes are visible. Before it: only what no kernel writes.
static __device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
