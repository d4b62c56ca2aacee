// How the INT32 sums of a group of INT4 products become sums over all of K: STRATEGY, and what each needs.
//   NONE           channel: INT32 sums over all of K (GROUP means nothing).
//   IMAD           a128i: a group's INT32 sum times the token's integer scale, added to an INT32; exact.
//   MAGIC_FFMA2    g128, g64, g32: a group's INT32 sum starts at the bits of 1.5 * 2^23 and so is the float
//                  F = 12582912 + sum, exactly (|sum| <= 8192). fma(F, s_w, -12582912 * s_w), whose offset is exact for
//                  an fp16 s_w, is sum * s_w rounded once; another fma adds it, times s_a.
//   I2F_FMUL_FFMA  g128, the straightforward way, to the same bits: what MAGIC_FFMA2 is measured against.
#pragma once

enum { NONE, IMAD, MAGIC_FFMA2, I2F_FMUL_FFMA };  // STRATEGY
constexpr bool TOKEN_SCALES = STRATEGY != NONE;   // per group
constexpr bool FLOAT_SCALES = STRATEGY == MAGIC_FFMA2 || STRATEGY == I2F_FMUL_FFMA;

template <bool is_float>
struct SumOf {
  using type = u32;
};
template <>
struct SumOf<true> {
  using type = float;
};
using Sum = SumOf<FLOAT_SCALES>::type;

static __device__ __forceinline__ float value(float sum) { return sum; }
static __device__ __forceinline__ float value(u32 sum) { return (float)(int)sum; }

// C of a group's first MMA. Read from memory, since of a constant the compiler rebuilds the four registers every time.
__device__ __align__(16) u32 magic_bits[4] = {0x4B400000u, 0x4B400000u, 0x4B400000u, 0x4B400000u};

constexpr float MAGIC = 12582912.0f;  // those bits

struct Start {
  u32 c[4] = {};

  __device__ __forceinline__ Start() {
    if (STRATEGY == MAGIC_FFMA2) {
      asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
                   : "l"(magic_bits));
    }
  }
};

// Adds a group's sums of one tile of MMA results: those of rows e / 2 and tokens e % 2. `row_offset`: -MAGIC times the
// scale, for MAGIC_FFMA2.
static __device__ __forceinline__ void add_group(u32 (&sum)[4], const u32 (&part)[4], const float*, const float*,
                                                 const u32 (&token_scale)[2]) {
#pragma unroll
  for (int e = 0; e < 4; e++) sum[e] += part[e] * token_scale[e % 2];
}

static __device__ __forceinline__ void add_group(float (&sum)[4], const u32 (&part)[4], const float* row_scale,
                                                 const float* row_offset, const u32 (&token_scale)[2]) {
#pragma unroll
  for (int e = 0; e < 4; e++) {
    float scaled_sum;
    if (STRATEGY == MAGIC_FFMA2) {
      scaled_sum = fmaf(__int_as_float((int)part[e]), row_scale[e / 2], row_offset[e / 2]);
    } else {
      scaled_sum = (float)(int)part[e] * row_scale[e / 2];
    }
    sum[e] = fmaf(scaled_sum, __int_as_float((int)token_scale[e % 2]), sum[e]);
  }
}
