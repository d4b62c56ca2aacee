// The last step of kernels whose CTA of 32 * WARPS threads holds ROWS whole rows of sums in shared memory: a thread
// scales and writes four rows of every TOKENS_AT_ONCE-th token. row_scale needs 16-byte alignment, bias and out 8.
#pragma once

struct Share {
  static constexpr int QUADS = ROWS / 4, TOKENS_AT_ONCE = 32 * WARPS / QUADS;
  static_assert(TOKENS_AT_ONCE > 0, "");
  int row, token;  // the first of four rows (all in W, or none), and of its tokens
  bool exists;
  __device__ Share(int thread, int group, int m, int n)
      : row(group * ROWS + thread % QUADS * 4),
        token(thread / QUADS),
        exists(token < min(m, TOKENS_AT_ONCE) && row < n) {}
};

struct RowScales {
  float scale[4];
  Out bias[4];
  static __device__ __forceinline__ RowScales load(const Share& share, const float* row_scale, const Out* bias) {
    if (!share.exists) return {};
    const float4 scale = *reinterpret_cast<const float4*>(row_scale + share.row);
    const uint2 b = bias ? *reinterpret_cast<const uint2*>(bias + share.row) : uint2{};
    return {{scale.x, scale.y, scale.z, scale.w}, {(Out)b.x, (Out)(b.x >> 16), (Out)b.y, (Out)(b.y >> 16)}};
  }
};
