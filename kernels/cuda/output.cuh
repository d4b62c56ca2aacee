// The last step of every GEMM: an accumulator, scaled, with bias, in the output's type. OUT_BF16: 1 bfloat16, 0 fp16.
#pragma once

using Out = unsigned short;  // the bits of an fp16 or bf16

static __device__ __forceinline__ Out to_out(float value) {
  Out bits;
#if OUT_BF16
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#endif
  return bits;
}

// `low` is the first of the two in memory.
static __device__ __forceinline__ u32 to_out_pair(float low, float high) {
  u32 pair;
#if OUT_BF16
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#endif
  return pair;
}

static __device__ __forceinline__ float from_out(Out bits) {
#if OUT_BF16
  return __int_as_float((int)bits << 16);
#else
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
#endif
}

// The steps that kernels/reference.py repeats bit by bit: the product of the scales first, then one fused multiply-add.
static __device__ __forceinline__ Out scaled(float sum, float token_scale, float row_scale, float bias) {
  return to_out(fmaf(sum, token_scale * row_scale, bias));
}

// scaled() of one row for two tokens, packed.
static __device__ __forceinline__ u32 scaled_pair(float first, float second, float2 token_scale, float row_scale,
                                                  float bias) {
  return to_out_pair(fmaf(first, token_scale.x * row_scale, bias), fmaf(second, token_scale.y * row_scale, bias));
}
