// CTAs of one cluster (sm_90): their ranks, each other's shared memory, barriers across them. Needs async_copy.cuh.
#pragma once

static __device__ __forceinline__ u32 cluster_rank() {
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Of all threads of all CTAs, at the start: barriers that one thread initialised and fenced (mbarrier_init_fence) may
// be used after. Releases nothing else, which would wait for memory.
static __device__ __forceinline__ void cluster_start() {
  asm volatile("barrier.cluster.arrive.relaxed;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
}

// Of all threads of all CTAs; what they wrote before is visible after.
static __device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
}

// The same place in the shared memory of another CTA.
static __device__ __forceinline__ u32 address_in_cta(u32 address, u32 rank) {
  u32 there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

// Sixteen bytes into another CTA's shared memory; its barrier counts them as it counts a bulk copy's.
static __device__ __forceinline__ void store_16_async(u32 to, u32 x, u32 y, u32 z, u32 w, u32 barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
               "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier)
               : "memory");
}

// Says that reads of shared memory have ended. Writes before it are not released: that would wait for stores to L2.
static __device__ __forceinline__ void mbarrier_arrive_in_cluster(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// As mbarrier_wait, and what other CTAs did before they arrived is visible.
static __device__ __forceinline__ void mbarrier_wait_in_cluster(u32 barrier, u32 parity) {
  u32 ended;
  do {
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(ended)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (!ended);
}
