// INT4 MMAs: native where Tensor Cores have them, up to sm_89. From sm_90 on their nibbles are widened to INT8, each in
// the upper half of its byte, so 16 times too large: two instructions for eight. Sums are 256 times too large, at most
// 2^20, and are shifted back exactly. Even and odd nibbles make two INT8 steps of K; as both operands do, it is the same
// sum. What the compiler makes of mma.sync s4 there, a function for every MMA, executes five times as much.
#pragma once
#include "mma.cuh"

#if __CUDA_ARCH__ >= 900
static __device__ __forceinline__ u32 even_nibbles(u32 word) { return word << 4 & 0xF0F0F0F0u; }
static __device__ __forceinline__ u32 odd_nibbles(u32 word) { return word & 0xF0F0F0F0u; }

static __device__ __forceinline__ void add_shifted(u32 (&c)[4], const u32 (&sum)[4]) {
#pragma unroll
  for (int e = 0; e < 4; e++) c[e] += (u32)((int)sum[e] >> 8);
}

struct int4_m16n8k64 {
  static __device__ __forceinline__ void mma(u32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    u32 sum[4] = {};
    mma_s8_m16n8k32::mma(sum, {even_nibbles(a[0]), even_nibbles(a[1]), even_nibbles(a[2]), even_nibbles(a[3])},
                         {even_nibbles(b[0]), even_nibbles(b[1])});
    mma_s8_m16n8k32::mma(sum, {odd_nibbles(a[0]), odd_nibbles(a[1]), odd_nibbles(a[2]), odd_nibbles(a[3])},
                         {odd_nibbles(b[0]), odd_nibbles(b[1])});
    add_shifted(c, sum);
  }
};

struct int4_m16n8k32 {
  static __device__ __forceinline__ void mma(u32 (&c)[4], const u32 (&a)[2], const u32 (&b)[1]) {
    u32 sum[4] = {};
    mma_s8_m16n8k32::mma(sum, {even_nibbles(a[0]), even_nibbles(a[1]), odd_nibbles(a[0]), odd_nibbles(a[1])},
                         {even_nibbles(b[0]), odd_nibbles(b[0])});
    add_shifted(c, sum);
  }
};
#else
using int4_m16n8k64 = mma_s4_m16n8k64;
using int4_m16n8k32 = mma_s4_m16n8k32;
#endif
