// A cluster's CTAs run at the same time on neighbouring SMs and reach each other's shared memory (sm_90 and later).
// CLUSTER: CTAs of one; a tile that says nothing has none.
#pragma once

#ifndef CLUSTER
#define CLUSTER 1
#endif
#if CLUSTER > 1
#define CLUSTER_OF_CTAS __cluster_dims__(CLUSTER, 1, 1)
#else
#define CLUSTER_OF_CTAS
#endif

// One barrier for all threads of the cluster, in two halves; every thread arrives and waits in turn. What a thread wrote
// to shared memory before it arrives, others see after they have waited.
static __device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
// Arrives without a fence, which takes longer than the barrier: by a thread that has only read, and used what it read.
static __device__ __forceinline__ void cluster_arrive_read() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
static __device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Where the CTA of this rank has what lies at `address` in the shared memory of the one that asks.
static __device__ __forceinline__ u32 address_in_cta(u32 address, int rank) {
  u32 there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
static __device__ __forceinline__ uint4 load_from_cluster(u32 address) {
  uint4 v;
  asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}
