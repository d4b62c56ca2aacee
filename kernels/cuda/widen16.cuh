// Packed words of INT4 codes (widen.cuh says what they hold) to fp16 or bf16, exactly, in registers. widen_f16 and
// widen_bf16 fill operand A of an m16n8k16 MMA: a[0], a[1] are the rows' k 0 and 1, a[2], a[3] their k 2 and 3.
#pragma once
#include "widen.cuh"

static __device__ __forceinline__ u32 word_of(const uint4& four, int i) {
  return i == 0 ? four.x : i == 1 ? four.y : i == 2 ? four.z : four.w;
}

static __device__ __forceinline__ u32 add_f16x2(u32 x, u32 y) {
  u32 sum;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(x), "r"(y));
  return sum;
}

static __device__ __forceinline__ u32 fma_bf16x2(u32 x, u32 y, u32 z) {
  u32 sum;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(x), "r"(y), "r"(z));
  return sum;
}

// `exponent` is EXPONENT_F16 or EXPONENT_BF16 behind `in_register`: an instruction takes one constant, and the
// compiler, given both, keeps this one as such and moves the masks into registers again and again, half as many moves
// as work.
constexpr u32 EXPONENT_F16 = 0x64006400u, EXPONENT_BF16 = 0x43004300u;  // 1024 and 128, twice

// The constant, but the compiler cannot know it: `positive` is a count from the host.
static __device__ __forceinline__ u32 in_register(u32 constant, int positive) {
  return constant | (u32)positive >> 31;
}

// A nibble in the mantissa's lowest bits makes 1024 + code, one in the next four 1024 + 16 * code; bits 10 and up are
// the exponent. Nine instructions for eight weights.
static __device__ __forceinline__ void widen_f16(u32 word, u32 exponent, u32 (&a)[4]) {
  const u32 later = word >> 8;
  a[0] = add_f16x2((word & 0x000F000Fu) | exponent, 0xE408E408u);                // - 1032
  a[1] = fma_f16x2((word & 0x00F000F0u) | exponent, 0x2C002C00u, 0xD480D480u);   // / 16 - 72
  a[2] = add_f16x2((later & 0x000F000Fu) | exponent, 0xE408E408u);
  a[3] = fma_f16x2((later & 0x00F000F0u) | exponent, 0x2C002C00u, 0xD480D480u);
}

// The mantissa of a bf16 has seven bits: only the lowest nibble keeps clear of the exponent, so every nibble is moved
// there. x * 1 - 136 instead of x - 136: there is no bf16 addition before sm_90. Eleven instructions for eight weights.
static __device__ __forceinline__ void widen_bf16(u32 word, u32 exponent, u32 (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++)  // 128 + code, then - 136
    a[i] = fma_bf16x2(((word >> (4 * i)) & 0x000F000Fu) | exponent, 0x3F803F80u, 0xC308C308u);
}
