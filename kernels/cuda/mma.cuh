// mma.sync wrappers, one struct an instruction: D = A x B + C in place on C, operands as 32-bit registers.
//   A, B, C     registers per thread
//   macs        multiply-accumulates of one instruction (a warp)
// A struct that is never used emits no code, so one header serves every architecture.
#pragma once

using u8 = unsigned char;
using u32 = unsigned int;
using u64 = unsigned long long;

#define C2 "+r"(c[0]), "+r"(c[1])
#define C4 "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
#define A1 "r"(a[0])
#define A2 "r"(a[0]), "r"(a[1])
#define A4 "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
#define B1 "r"(b[0])
#define B2 "r"(b[0]), "r"(b[1])

struct mma_s4_m8n8k32 {
  static constexpr int A = 1, B = 1, C = 2, macs = 8 * 8 * 32;
  static __device__ void mma(u32 (&c)[2], const u32 (&a)[1], const u32 (&b)[1]) {
    asm volatile("mma.sync.aligned.m8n8k32.row.col.s32.s4.s4.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" : C2 : A1, B1);
  }
};

struct mma_s4_m16n8k32 {
  static constexpr int A = 2, B = 1, C = 4, macs = 16 * 8 * 32;
  static __device__ void mma(u32 (&c)[4], const u32 (&a)[2], const u32 (&b)[1]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s4.s4.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : C4 : A2, B1);
  }
};

struct mma_s4_m16n8k64 {
  static constexpr int A = 4, B = 2, C = 4, macs = 16 * 8 * 64;
  static __device__ void mma(u32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : C4 : A4, B2);
  }
};

struct mma_s8_m8n8k16 {
  static constexpr int A = 1, B = 1, C = 2, macs = 8 * 8 * 16;
  static __device__ void mma(u32 (&c)[2], const u32 (&a)[1], const u32 (&b)[1]) {
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" : C2 : A1, B1);
  }
};

struct mma_s8_m16n8k32 {
  static constexpr int A = 4, B = 2, C = 4, macs = 16 * 8 * 32;
  static __device__ void mma(u32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : C4 : A4, B2);
  }
};

// A unsigned, B signed: weights that carry an offset of 128 (kernels/cuda/widen.cuh).
struct mma_u8s8_m16n8k32 {
  static constexpr int A = 4, B = 2, C = 4, macs = 16 * 8 * 32;
  static __device__ void mma(u32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : C4 : A4, B2);
  }
};

struct mma_f16_m16n8k8 {
  static constexpr int A = 2, B = 1, C = 4, macs = 16 * 8 * 8;
  static __device__ void mma(u32 (&c)[4], const u32 (&a)[2], const u32 (&b)[1]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : C4 : A2, B1);
  }
};

struct mma_f16_m16n8k16 {
  static constexpr int A = 4, B = 2, C = 4, macs = 16 * 8 * 16;
  static __device__ void mma(u32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : C4 : A4, B2);
  }
};

struct mma_bf16_m16n8k16 {
  static constexpr int A = 4, B = 2, C = 4, macs = 16 * 8 * 16;
  static __device__ void mma(u32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : C4 : A4, B2);
  }
};

struct mma_e4m3_m16n8k32 {
  static constexpr int A = 4, B = 2, C = 4, macs = 16 * 8 * 32;
  static __device__ void mma(u32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : C4 : A4, B2);
  }
};

// Block-scaled FP4 (sm_120a and its family). The scales 0x38383838 and 0x7F7F7F7F are 1.0 in ue4m3 and ue8m0.
struct mma_mxf4nvf4_m16n8k64 {
  static constexpr int A = 4, B = 2, C = 4, macs = 16 * 8 * 64;
  static __device__ void mma(u32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3}, {%10}, {0,0}, {%10}, {0,0};"
                 : C4 : A4, B2, "r"(0x38383838u));
  }
};

struct mma_mxf4_m16n8k64 {
  static constexpr int A = 4, B = 2, C = 4, macs = 16 * 8 * 64;
  static __device__ void mma(u32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k64.row.col.kind::mxf4.block_scale.scale_vec::2X.f32.e2m1.e2m1.f32.ue8m0 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3}, {%10}, {0,0}, {%10}, {0,0};"
                 : C4 : A4, B2, "r"(0x7F7F7F7Fu));
  }
};

#undef C2
#undef C4
#undef A1
#undef A2
#undef A4
#undef B1
#undef B2
