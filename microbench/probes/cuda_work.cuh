// CUDA-core work for the co-issue probes: k passes, one instruction (or one named sequence) per register and pass.
// k is a run-time value: the passes are a loop, which no compiler moves across the wait for the Tensor Core.
// WORK is one of the structs below: work_* passes over one set of registers, mix_* (TWO_SETS) reads one into another. p, q: one pair for all registers. y: registers that are only read, FRESH of them.
#pragma once

constexpr int FRESH = 8;

struct work_nop {  // bar.warp.sync of a whole, converged warp assembles to NOP
  static __device__ void apply(u32&, u32, u32, u32, u32) { asm volatile("bar.warp.sync 0xffffffff;"); }
};
struct work_ffma {  // one fresh source register
  static __device__ void apply(u32& x, u32 p, u32 q, u32, u32) { asm volatile("fma.rn.f32 %0, %0, %1, %2;" : "+r"(x) : "r"(p), "r"(q)); }
};
struct work_ffma3 {  // three fresh source registers
  static __device__ void apply(u32& x, u32, u32, u32 y, u32 z) { asm volatile("fma.rn.f32 %0, %1, %2, %0;" : "+r"(x) : "r"(y), "r"(z)); }
};
struct work_fadd {
  static __device__ void apply(u32& x, u32 p, u32, u32, u32) { asm volatile("add.rn.f32 %0, %0, %1;" : "+r"(x) : "r"(p)); }
};
struct work_imad {
  static __device__ void apply(u32& x, u32 p, u32 q, u32, u32) { asm volatile("mad.lo.s32 %0, %0, %1, %2;" : "+r"(x) : "r"(p), "r"(q)); }
};
struct work_lop3 {
  static __device__ void apply(u32& x, u32 p, u32 q, u32, u32) { asm volatile("lop3.b32 %0, %1, %2, %0, 0x6a;" : "+r"(x) : "r"(p), "r"(q)); }
};
struct work_i2f_ffma {  // two instructions: the integer's float times a scale
  static __device__ void apply(u32& x, u32 p, u32 q, u32, u32) {
    asm volatile("{.reg .f32 t; cvt.rn.f32.s32 t, %0; fma.rn.f32 %0, t, %1, %2;}" : "+r"(x) : "r"(p), "r"(q));
  }
};

// Dequantisation: the finished integer sums c of a group are scaled into the float (or integer) sums f.
struct mix_i2f_ffma {
  static __device__ void apply(u32& f, u32& c, u32 p, u32) {
    asm volatile("{.reg .f32 t; cvt.rn.f32.s32 t, %1; fma.rn.f32 %0, t, %2, %0;}" : "+r"(f), "+r"(c) : "r"(p));
  }
};
struct mix_i2f_fmul_ffma {
  static __device__ void apply(u32& f, u32& c, u32 p, u32 q) {
    asm volatile("{.reg .f32 t; cvt.rn.f32.s32 t, %1; mul.rn.f32 t, t, %2; fma.rn.f32 %0, t, %3, %0;}"
                 : "+r"(f), "+r"(c) : "r"(p), "r"(q));
  }
};
struct mix_magic_ffma2 {  // c counts up from 0x4B400000, so its bits read as 12582912.0 + sum; q stands for the offset
  static __device__ void apply(u32& f, u32& c, u32 p, u32 q) {
    asm volatile("{.reg .f32 t; fma.rn.f32 t, %1, %2, %3; fma.rn.f32 %0, t, %2, %0;}" : "+r"(f), "+r"(c) : "r"(p), "r"(q));
  }
};
struct mix_magic_fadd_ffma {
  static __device__ void apply(u32& f, u32& c, u32 p, u32) {
    asm volatile("{.reg .f32 t; add.rn.f32 t, %1, 0fCB400000; fma.rn.f32 %0, t, %2, %0;}" : "+r"(f), "+r"(c) : "r"(p));
  }
};
struct mix_imad {
  static __device__ void apply(u32& f, u32& c, u32 p, u32) {
    asm volatile("mad.lo.s32 %0, %1, %2, %0;" : "+r"(f), "+r"(c) : "r"(p));
  }
};

#if TWO_SETS
// Once or not at all: a second pass over the same sums would find their conversion already done, since it is invariant.
template <int N>
static __device__ void dequantise(u32 (&f)[N], u32 (&c)[N], int k, u32 p, u32 q) {
  if (k == 0) return;
#pragma unroll
  for (int i = 0; i < N; i++) WORK::apply(f[i], c[i], p, q);
}
#else
template <int N>
static __device__ void cuda_work(u32 (&x)[N], int k, u32 p, u32 q, const u32 (&y)[FRESH]) {
#pragma unroll 1
  for (int pass = 0; pass < k; pass++) {
#pragma unroll
    for (int i = 0; i < N; i++) WORK::apply(x[i], p, q, y[i % FRESH], y[(i + FRESH / 2) % FRESH]);
  }
}
#endif
