// Packed words (kernels/formats.py) to operands of integer MMAs, in registers. A word of codes (value + 8) holds, for
// two weight rows that are eight apart, four k: byte p is k BYTE_ORDER[p], its low nibble the first row's, its high
// nibble the second's. A scale word holds both rows' scales of one group.
#pragma once

// Codes where they lie, unsigned: the second row's sixteen times too large. Two instructions for eight weights.
static __device__ __forceinline__ void widen_in_place(u32 word, u32& first_row, u32& second_row) {
  first_row = word & 0x0F0F0F0Fu;
  second_row = word & 0xF0F0F0F0u;
}

// Signed INT8, sixteen times the value: the 1/16 belongs into the row's scale. Three instructions for eight weights.
// `high_nibbles`: 0xF0F0F0F0, which the caller may keep in a register, for an instruction takes one literal.
static __device__ __forceinline__ void widen_times_16(u32 word, u32 high_nibbles, u32& first_row, u32& second_row) {
  first_row = ((word << 4) & high_nibbles) ^ 0x80808080u;
  second_row = (word & high_nibbles) ^ 0x80808080u;
}

// The scale word of a g128i group, made ready once a group: integer scale and zero of both rows.
struct IntegerGroup {
  u32 first_scale, first_zero, second_scale, second_zero;  // zeros in all four bytes
  static __device__ __forceinline__ IntegerGroup of(u32 scales) {
    return {scales & 0xFFu, __byte_perm(scales, 0, 0x1111), __byte_perm(scales, 0, 0x4442),
            __byte_perm(scales, 0, 0x3333)};
  }
};

// Unsigned INT8, 128 more than the value: code * scale + zero lies in 0 … 255, so that no byte carries into the next
// (held at packing). Five instructions for eight weights.
static __device__ __forceinline__ void widen_grouped(u32 word, const IntegerGroup& group, u32& first_row,
                                                     u32& second_row) {
  first_row = (word & 0x0F0F0F0Fu) * group.first_scale + group.first_zero;
  second_row = ((word >> 4) & 0x0F0F0F0Fu) * group.second_scale + group.second_zero;
}

static __device__ __forceinline__ u32 fma_f16x2(u32 a, u32 b, u32 c) {
  u32 result;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}

// The scale word of a g128r group, made ready once a group: steps and zeros, the first row's in the low halves, the
// second's in the high ones; of the second row the step's sixteenth. A scale of n means (n + 1) / 16: 0x6400 | n are the
// bits of 1024 + n, and the constants those of 1/16, 1/256, -1023/16 and -1023/256.
struct RoundedGroup {
  u32 steps, zeros;
  static __device__ __forceinline__ RoundedGroup of(u32 scales) {
    return {fma_f16x2(__byte_perm(scales, 0x64646464u, 0x4240), 0x1C002C00u, 0xC3FED3FEu),
            __byte_perm(scales, 0, 0x4341)};
  }
  // Both halves with one row's step and zero: HFMA2 takes half a register twice.
  __device__ __forceinline__ u32 first(u32 codes) const {
    u32 result;
    asm("{.reg .f16 step, zero, other; .reg .b32 steps, zeros; mov.b32 {step, other}, %2; mov.b32 {zero, other}, %3;"
        " mov.b32 steps, {step, step}; mov.b32 zeros, {zero, zero}; fma.rn.f16x2 %0, %1, steps, zeros;}"
        : "=r"(result) : "r"(codes), "r"(steps), "r"(zeros));
    return result;
  }
  __device__ __forceinline__ u32 second(u32 codes) const {
    u32 result;
    asm("{.reg .f16 step, zero, other; .reg .b32 steps, zeros; mov.b32 {other, step}, %2; mov.b32 {other, zero}, %3;"
        " mov.b32 steps, {step, step}; mov.b32 zeros, {zero, zero}; fma.rn.f16x2 %0, %1, steps, zeros;}"
        : "=r"(result) : "r"(codes), "r"(steps), "r"(zeros));
    return result;
  }
};

// Unsigned INT8, 128 more than the value: rint(code * step + zero), ties to even, which lies in 0 … 255 (held at packing).
// The bits of an FP16 number below 2^-13 are the integer that it is in units of 2^-24: so codes and zeros are operands as
// they lie, FMA rounds to an integer, and its bits are the operand, two a register. Eleven instructions for eight
// weights; with integer products instead (IMAD) as many, of half the rate.
static __device__ __forceinline__ void widen_grouped(u32 word, const RoundedGroup& group, u32& first_row,
                                                     u32& second_row) {
  const u32 odd = word >> 8;  // bytes
  first_row = group.first(odd & 0x000F000Fu) * 256 + group.first(word & 0x000F000Fu);
  second_row = group.second(odd & 0x00F000F0u) * 256 + group.second(word & 0x00F000F0u);
}

#if ROUNDED
using TwoLevelGroup = RoundedGroup;
#else
using TwoLevelGroup = IntegerGroup;
#endif

// By what unsigned operands differ from the weights, corrected once per output:
// sum of weights * x = (sum of operands * x - 2^offset_shift * sum of x) * factor.
struct Widened {
  int offset_shift;
  float factor;
  static __device__ __forceinline__ Widened in_place(bool second_row) {
    return second_row ? Widened{7, 0.0625f} : Widened{3, 1.0f};
  }
  static __device__ __forceinline__ Widened grouped() { return {7, 1.0f}; }
};

// The scale word of a float group: the first row's and the second row's.
static __device__ __forceinline__ float2 f16x2_to_float2(u32 bits) {
  float2 pair;
  asm("{.reg .f16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
      : "=f"(pair.x), "=f"(pair.y) : "r"(bits));
  return pair;
}
