// INT4 codes (value + 8) to MMA operands, in registers. A word holds, for two weight rows that are eight apart, four k:
// byte p is k BYTE_ORDER[p], its low nibble the first row's, its high nibble the second's (kernels/formats.py).
#pragma once

// Signed INT8, sixteen times the value: the 1/16 belongs into the row's scale. Three instructions for eight weights.
static __device__ __forceinline__ void widen_times_16(u32 word, u32& first_row, u32& second_row) {
  first_row = ((word << 4) & 0xF0F0F0F0u) ^ 0x80808080u;
  second_row = (word & 0xF0F0F0F0u) ^ 0x80808080u;
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
// (held at packing). 128 * sum(x) is subtracted once per token in the epilogue. Five instructions for eight weights.
static __device__ __forceinline__ void widen_grouped(u32 word, const IntegerGroup& group, u32& first_row,
                                                     u32& second_row) {
  first_row = (word & 0x0F0F0F0Fu) * group.first_scale + group.first_zero;
  second_row = ((word >> 4) & 0x0F0F0F0Fu) * group.second_scale + group.second_zero;
}
