// Packed INT4 weights to fp16 or bf16 [N, K], row-major, for a dense GEMM that follows: beyond some tens of tokens that
// costs less than widening the same weight in every CTA that needs it.
//
// A warp takes 16 rows x 128 of K, half a packed block: a lane loads twice 16 bytes and stores eight times 16, each
// warp's store eight rows x 64 bytes. Every value is rounded twice at most: (code - 8) * group_scale is exact in fp32,
// times row_scale rounds to fp32, and that to the output's type. No shared memory; the memory's speed is the bound, 2.5
// to 2.56 bytes a weight, four fifths of them written.
#include "mma.cuh"
#include "async_copy.cuh"
#include "output.cuh"
#include "widen16.cuh"

constexpr int THREADS = 32 * WARPS;
constexpr int GROUPS = GROUP ? 128 / (GROUP ? GROUP : 128) : 1;  // GROUP: K per group scale; 0: the row's alone
constexpr int BLOCK_BYTES = 2048 + (GROUP ? GROUPS * 64 : 0);
constexpr u32 ONE_TWICE = 0x3C003C00u;  // fp16

// Past the L1; and not as constants, or the compiler would move it behind stores, next to its use.
static __device__ __forceinline__ uint4 load_once(const u8* from) {
  uint4 x;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(from));
  return x;
}

static __device__ __forceinline__ u32 dequantised(u32 values, float group_scale, float row_scale) {
  const float2 pair = f16x2_to_float2(values);
  return to_out_pair(pair.x * group_scale * row_scale, pair.y * group_scale * row_scale);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    gemm(const u8* weights, const float* row_scale, const void*, const float*, const int*, const Out*, Out*,
         u8* workspace, int, int n, int k) {
  launch_dependents();
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const int k_blocks = k / 128;
  const int index = blockIdx.x * WARPS + threadIdx.x / 32;  // of a row tile's 128 of K, as they lie in memory
  if (index >= n / 16 * k_blocks) return;
  const int tile = index % 2, k_block = index / 2 % k_blocks, row_block = index / 2 / k_blocks;
  const u8* block = weights + (u64)(index / 2) * BLOCK_BYTES;

  uint4 halves[2];
  u32 scales[GROUPS];
#pragma unroll
  for (int half = 0; half < 2; half++) halves[half] = load_once(block + (tile * 2 + half) * 512 + lane * 16);
#pragma unroll
  for (int i = 0; i < GROUPS; i++)
    scales[i] = GROUP ? *reinterpret_cast<const u32*>(block + 2048 + (i * 2 + tile) * 32 + g * 4) : ONE_TWICE;
  const int row = 32 * row_block + 16 * tile + g;
  const float first_scale = row_scale[row], second_scale = row_scale[row + 8];
  const u32 exponent = in_register(EXPONENT_F16, k);

  wait_for_previous_kernel();  // it may still read the workspace
  uint4* to = reinterpret_cast<uint4*>(workspace + ((u64)row * k + 128 * k_block + 8 * c) * 2);
#pragma unroll
  for (int quarter = 0; quarter < 4; quarter++) {
    const float2 group = f16x2_to_float2(scales[quarter * GROUPS / 4]);
    u32 first[4], second[4];  // of row g and row g + 8: eight consecutive k
#pragma unroll
    for (int h = 0; h < 2; h++) {
      u32 a[4];
      widen_f16(word_of(halves[quarter / 2], 2 * (quarter % 2) + h), exponent, a);
      first[2 * h] = dequantised(a[0], group.x, first_scale);
      first[2 * h + 1] = dequantised(a[2], group.x, first_scale);
      second[2 * h] = dequantised(a[1], group.y, second_scale);
      second[2 * h + 1] = dequantised(a[3], group.y, second_scale);
    }
    to[4 * quarter] = make_uint4(first[0], first[1], first[2], first[3]);
    to[4 * quarter + k] = make_uint4(second[0], second[1], second[2], second[3]);  // eight rows of k values: k vectors
  }
}
