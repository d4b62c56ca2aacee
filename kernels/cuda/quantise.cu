// Activation quantiser: x [M, K] fp16 or bf16 -> INT8 or INT4 in operand order; optional block Hadamard before.
// One pass over memory: a row is read once, 16 bytes a load, and stays in registers between its maximum and its codes.
//
//   rows       WARPS warps a row, ROWS rows a CTA; rows of a CTA share nothing but the launch
//   k          a vector is 8 consecutive k, one load. Warp w holds vectors (w * VECTORS + j) * 32 + lane, so that one
//              load of a warp is 512 consecutive bytes. INT8 operand order keeps 8 consecutive k together too: a store
//              is 8 bytes a lane, and 64 a token and half of 128 k: whole sectors; tokens beside it fill lines in L2.
//              INT4 likewise, 4 bytes a lane and 64 a token and 128 k; scales of groups lie behind their codes
//   maximum    of absolute values by max.NaN, so that Inf and NaN survive, then by redux.sync on the bits, which order
//              like the values. A row (a group where groups have scales) that holds one gets scale NaN and codes 0
//   rounding   adding 1.5 * 2^23 rounds to nearest even and leaves the code in the low bits: no F2I, which
//              has 16 lanes a clock and SM on sm_80 (CUDA C++ Programming Guide), a quarter of an addition's
//   Hadamard   butterflies in fp32, strides ascending: 1, 2, 4 in the vector; 8 … 128 by shuffles; from 256 on in
//              registers over j; from 256 * VECTORS on too, after warps have swapped some of their j through shared
//              memory. Whole vectors move, so the row is merely held in another order then, and never put back. The
//              factor 1 / sqrt(size) goes into the scale alone
//   barriers   of a row's warps: one where warps swap (three for blocks of 8 warps), one for the maximum, one for the sum
//   segments   a row of more than 32768 with Hadamard is transformed twice, once for its maximum, once for its codes;
//              the second reading comes from L2
//   registers  4 * VECTORS hold a row, with Hadamard 8 * VECTORS; with 24 and 32 more for all else (8 again for integer
//              groups) an SM holds CTAS CTAs, e.g. 12 rows of 4096 or 3 of 14336, with Hadamard 8 or 2; asserted
//              in tests/compile/test_quantise.py
//   shared     4 bytes for each element that changes warps, 2 with blocks of 8 warps, else next to nothing
//   bound      memory: M * K * (2 + 1 or 1/2) bytes. With blocks from 256 on issue slots are as scarce on an H100: some
//              30 instructions an element, 128 a clock and SM, beside 5 shuffles, 32 a clock and SM
//
// Macros: BITS 8 | 4; WGMMA 0 | 1, the order of INT8; GROUP 0 | 32 | 64 | 128; INTEGER_GROUPS 0 | 1; IN_BF16 0 | 1;
// HADAMARD 0 | size; VECTORS, WARPS, ROWS, SEGMENTS, CTAS: kernels/quantise.py.
using u8 = unsigned char;
using u32 = unsigned int;
using u64 = unsigned long long;

constexpr u32 ALL = 0xFFFFFFFFu;
constexpr int CHUNK = 256;  // k of a warp's load
constexpr int SEGMENT = WARPS * VECTORS * 32;  // vectors
constexpr float LIMIT = BITS == 8 ? 127.0f : 7.0f;
constexpr float LOWEST = BITS == 8 ? -127.0f : -8.0f;
constexpr float MAX_GROUP_SCALE = 16.0f;  // a128i
constexpr float STEPS = INTEGER_GROUPS ? LIMIT * MAX_GROUP_SCALE : LIMIT;  // from zero to the largest magnitude

constexpr float inverse_sqrt(int power_of_two) {
  return power_of_two >= 4 ? 0.5f * inverse_sqrt(power_of_two / 4) : power_of_two == 2 ? 0.70710678118654752f : 1.0f;
}
constexpr float FACTOR = HADAMARD ? inverse_sqrt(HADAMARD) : 1.0f;

static __device__ __forceinline__ uint4 load_past_l1(const uint4* from) {
  uint4 x;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(from) : "memory");
  return x;
}

static __device__ __forceinline__ void unpack(u32 pair, float& low, float& high) {
#if IN_BF16
  low = __uint_as_float(pair << 16);
  high = __uint_as_float(pair & 0xFFFF0000u);
#else
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
      : "=f"(low), "=f"(high)
      : "r"(pair));
#endif
}

// Maxima are volatile so that a128i, which wants a group's twice, computes it twice: kept, it is a register a vector.
// abs is part of the instruction.
static __device__ __forceinline__ u32 max_abs_of_pairs(u32 a, u32 b) {
  u32 most;
#if IN_BF16
  asm volatile("{.reg .b32 a, b; abs.bf16x2 a, %1; abs.bf16x2 b, %2; max.NaN.bf16x2 %0, a, b;}"
               : "=r"(most) : "r"(a), "r"(b));
#else
  asm volatile("{.reg .b32 a, b; abs.f16x2 a, %1; abs.f16x2 b, %2; max.NaN.f16x2 %0, a, b;}"
               : "=r"(most) : "r"(a), "r"(b));
#endif
  return most;
}

static __device__ __forceinline__ float max_abs(float a, float b) {
  float most;
  asm volatile("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(fabsf(a)), "f"(fabsf(b)));
  return most;
}

static __device__ __forceinline__ u32 max_of_warp(u32 bits) { return __reduce_max_sync(ALL, bits); }
static __device__ __forceinline__ int sum_of_warp(int value) { return __reduce_add_sync(ALL, value); }

// The warps of one row meet; other rows of the CTA go on.
static __device__ __forceinline__ void meet(int row) {
  if (WARPS == 1) __syncwarp();
  else if (ROWS == 1) __syncthreads();
  else asm volatile("bar.sync %0, %1;" ::"r"(row + 1), "r"(WARPS * 32) : "memory");
}

// ---- a segment of a row in registers -----------------------------------------------------------------------------

constexpr int SWAPPED = HADAMARD / (CHUNK * VECTORS) > 1 ? HADAMARD / (CHUNK * VECTORS) - 1 : 0;  // bits of w, of j
static_assert(SWAPPED < VECTORS, "a block takes more warps than a thread has vectors to swap");
constexpr int PARTS = SWAPPED > 3 ? 2 : 1;  // of a vector, swapped one after the other
constexpr int QUADS = 2 / PARTS;            // of such a part, four k each
constexpr int SWAPPING = WARPS * (VECTORS / (SWAPPED + 1)) * SWAPPED * QUADS * 32;  // float4 a row

#if HADAMARD
template <int N>
static __device__ __forceinline__ void butterflies(float (&x)[N], int stride) {
#pragma unroll
  for (int i = 0; i < N; i++)
    if (!(i & stride)) {
      const float a = x[i], b = x[i | stride];
      x[i] = a + b;
      x[i | stride] = a - b;
    }
}

struct Segment {
  float x[VECTORS * 8];

  __device__ __forceinline__ void fill(int j, uint4 raw) {
    unpack(raw.x, x[j * 8], x[j * 8 + 1]);
    unpack(raw.y, x[j * 8 + 2], x[j * 8 + 3]);
    unpack(raw.z, x[j * 8 + 4], x[j * 8 + 5]);
    unpack(raw.w, x[j * 8 + 6], x[j * 8 + 7]);
  }

  __device__ __forceinline__ void transform(float4* shared, int row, int warp, int lane) {
#pragma unroll
    for (int stride = 1; stride < 8; stride *= 2) butterflies(x, stride);
#pragma unroll
    for (int stride = 1; stride < 32; stride *= 2)
      if (stride * 8 < HADAMARD) {
        const float own = lane & stride ? -1.0f : 1.0f;  // other + own below, other - own above: one fma, one rounding
#pragma unroll
        for (int i = 0; i < VECTORS * 8; i++) x[i] = fmaf(x[i], own, __shfl_xor_sync(ALL, x[i], stride));
      }
#pragma unroll
    for (int stride = 1; stride < VECTORS; stride *= 2)
      if (stride * CHUNK < HADAMARD) butterflies(x, stride * 8);
    if (SWAPPED) {
      swap(shared, row, warp, lane);
#pragma unroll
      for (int stride = 1; stride <= SWAPPED; stride *= 2) butterflies(x, stride * 8);
    }
  }

  // Low bits of w and of j change places: afterwards a thread's low bits of j are the block's highest of k. Where they
  // are equal a vector stays. Blocks of 8 warps move half a vector at a time, so that shared memory suffices for rows of
  // 32768 on sm_86 and sm_89 too.
  __device__ __forceinline__ void swap(float4* shared, int row, int warp, int lane) {
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
      if (part) meet(row);
#pragma unroll
      for (int j = 0; j < VECTORS; j++)
        if ((j ^ warp) & SWAPPED) {
          float4* const to = shared + place(warp, j, warp) + lane;
#pragma unroll
          for (int quad = 0; quad < QUADS; quad++) {
            const float* from = x + j * 8 + (part + quad) * 4;
            to[quad * 32] = make_float4(from[0], from[1], from[2], from[3]);
          }
        }
      meet(row);
#pragma unroll
      for (int j = 0; j < VECTORS; j++)
        if ((j ^ warp) & SWAPPED) {
          const float4* const from = shared + place((warp & ~SWAPPED) | (j & SWAPPED), j, warp) + lane;
#pragma unroll
          for (int quad = 0; quad < QUADS; quad++) {
            const float4 got = from[quad * 32];
            float* to = x + j * 8 + (part + quad) * 4;
            to[0] = got.x, to[1] = got.y, to[2] = got.z, to[3] = got.w;
          }
        }
    }
  }

  // Of what warp `owner` gives away in exchange with j and `warp`. Those that stay have no place.
  static __device__ __forceinline__ int place(int owner, int j, int warp) {
    const int vector = owner * (VECTORS / (SWAPPED + 1)) + j / (SWAPPED + 1);
    return (vector * SWAPPED + ((j ^ warp) & SWAPPED) - 1) * (QUADS * 32);
  }

  // Chunk of the segment that a warp's j-th vectors are of, from the transform on.
  static __device__ __forceinline__ int held(int warp, int j) {
    return ((warp & ~SWAPPED) | (j & SWAPPED)) * VECTORS + ((j & ~SWAPPED) | (warp & SWAPPED));
  }

  __device__ __forceinline__ u32 max_bits(int j) const {
    float most = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) most = max_abs(most, x[j * 8 + i]);
    return __float_as_uint(most);
  }

  __device__ __forceinline__ void read(int j, float (&values)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; i++) values[i] = x[j * 8 + i];
  }
};
#else
struct Segment {
  uint4 x[VECTORS];

  __device__ __forceinline__ void fill(int j, uint4 raw) { x[j] = raw; }
  __device__ __forceinline__ void transform(float4*, int, int, int) {}
  static __device__ __forceinline__ int held(int warp, int j) { return warp * VECTORS + j; }

  __device__ __forceinline__ u32 max_bits(int j) const {
    const u32 pair = max_abs_of_pairs(max_abs_of_pairs(x[j].x, x[j].y), max_abs_of_pairs(x[j].z, x[j].w));
    float low, high;
    unpack(pair, low, high);
    return max(__float_as_uint(low), __float_as_uint(high));
  }

  __device__ __forceinline__ void read(int j, float (&values)[8]) const {
    unpack(x[j].x, values[0], values[1]);
    unpack(x[j].y, values[2], values[3]);
    unpack(x[j].z, values[4], values[5]);
    unpack(x[j].w, values[6], values[7]);
  }
};
#endif

// ---- codes -------------------------------------------------------------------------------------------------------

// value = code * scale. A maximum of zero, or one so small that its inverse overflows, has inverse 0 and codes 0.
struct Scale {
  float scale, inverse;
  u32 keep;  // 0 where the maximum is Inf or NaN, whose products are NaN: clears the codes

  static __device__ __forceinline__ Scale of(float most, float steps) {
    const bool finite = __float_as_uint(most) < 0x7F800000u;
    return {finite ? __fdiv_rn(most, steps) : __uint_as_float(0x7FC00000u), inverse_of(most, steps), finite ? ALL : 0u};
  }
  static __device__ __forceinline__ float inverse_of(float most, float steps) {
    const float inverse = __fdiv_rn(steps, most);
    return __float_as_uint(inverse) < 0x7F800000u ? inverse : 0.0f;
  }
};

// Bits whose low bytes (low nibbles) are the codes. Not contracted: the product is rounded before it is rounded to a
// code. Where nothing is clipped, no product rounds to more than LIMIT.
static __device__ __forceinline__ void encode(const float (&values)[8], float inverse, bool clipped, u32 (&code)[8]) {
  float steps[8];
#pragma unroll
  for (int i = 0; i < 8; i++) steps[i] = __fmul_rn(values[i], inverse);
  if (clipped) {
#pragma unroll
    for (int i = 0; i < 8; i++) steps[i] = fmaxf(fminf(steps[i], LIMIT), LOWEST);
  }
#pragma unroll
  for (int i = 0; i < 8; i++) code[i] = __float_as_uint(__fadd_rn(steps[i], 12582912.0f));
}

static __device__ __forceinline__ u32 low_bytes(u32 a, u32 b, u32 c, u32 d) {
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

// Layouts of kernels/formats.py are pieces of 128 k, [k / 128][token / PIECE_TOKENS]. Places count in units of what a
// lane stores: 8 bytes of INT8, 4 of INT4.
constexpr int PIECE_TOKENS = BITS == 8 ? 8 : 32;
constexpr u32 PIECE = BITS == 8 ? 1024 / 8 : (2048 + (GROUP ? 128 / GROUP * 128 : 0)) / 4;

// The piece of a lane's first vector: a chunk is two blocks of k, so the next one is 2 * pieces on.
static __device__ __forceinline__ u32 piece_place(int token, int pieces, int lane) {
  return ((lane >> 4) * pieces + (u32)token / PIECE_TOKENS) * PIECE;
}

// A lane's vector in its piece: INT8 [half][g][c][word 2 * s + h], for wgmma [g][chunk ^ g][c] after swap_words; INT4
// [tile][g][c][word 2 * half + s].
static __device__ __forceinline__ u32 place_in_piece(int token, int lane) {
#if WGMMA
  const u32 chunk = (lane >> 2 & 3) * 2 + (lane & 1);
  return (token & 7) * 16 + ((chunk ^ token) & 7) * 2 + (lane >> 1 & 1);
#endif
  const u32 half = lane >> 3 & 1, g = token & 7, c = lane & 3, s = lane >> 2 & 1;
  return BITS == 8 ? half * 64 + g * 8 + c * 2 + s : (token >> 3 & 3) * 128 + g * 16 + c * 4 + half * 2 + s;
}

// The scale of a lane's group in its piece of INT4: [group][tile pair][c][tile][e].
static __device__ __forceinline__ u32 scale_place_in_piece(int token, int lane) {
  const u32 group = (lane & 15) / (GROUP ? GROUP / 8 : 1);
  return 2048 / 4 + group * 32 + (token >> 4 & 1) * 16 + (token >> 1 & 3) * 4 + (token >> 3 & 1) * 2 + (token & 1);
}

// Predicated: into a branch of its own ptxas moves all of a store's address, for each vector anew.
static __device__ __forceinline__ void store_where(bool within, uint2* to, uint2 words) {
  asm volatile("{.reg .pred p; setp.ne.s32 p, %0, 0; @p st.global.v2.u32 [%1], {%2, %3};}"
               ::"r"((int)within), "l"(to), "r"(words.x), "r"(words.y) : "memory");
}
static __device__ __forceinline__ void store_where(bool within, u32* to, u32 word) {
  asm volatile("{.reg .pred p; setp.ne.s32 p, %0, 0; @p st.global.u32 [%1], %2;}"
               ::"r"((int)within), "l"(to), "r"(word) : "memory");
}

// The order for wgmma puts words 0 of neighbouring lanes side by side, and words 1 sixteen bytes away: even lanes end
// with both words 0 of a pair of lanes, odd ones with both words 1, so that a store is 8 bytes a lane here too.
static __device__ __forceinline__ uint2 swap_words(uint2 words, int lane) {
  const bool odd = lane & 1;
  const u32 got = __shfl_xor_sync(ALL, odd ? words.x : words.y, 1);
  return odd ? make_uint2(got, words.y) : make_uint2(words.x, got);
}

// ---- the kernel --------------------------------------------------------------------------------------------------

// data: pieces of 128 k, scales of groups included. scale: fp32 [m], not with float groups. row_sum: int32 [m], INT8
// only.
extern "C" __global__ void __launch_bounds__(WARPS * 32 * ROWS, CTAS)
    quantise(const uint4* x, u8* data, float* scale, int* row_sum, int m, int k, float clip) {
  extern __shared__ float4 swapping[];
  __shared__ u32 maxima[ROWS][32];
  __shared__ int sums[ROWS][32];
  const int lane = threadIdx.x % 32;
  const int row = ROWS > 1 ? threadIdx.x / (WARPS * 32) : 0;
  const int warp = threadIdx.x / 32 % WARPS;
  const int vectors = k / 8;
  float4* const own_swapping = swapping + row * SWAPPING;

#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  const int token = blockIdx.x * ROWS + row;
  if (token >= m) return;  // all warps of a row leave together

  const uint4* const from = x + (u64)token * vectors;
  Segment held;
  const auto load = [&](int segment) {
    uint4 raw[VECTORS];
#pragma unroll
    for (int j = 0; j < VECTORS; j++) {
      const int vector = segment * SEGMENT + (warp * VECTORS + j) * 32 + lane;
      raw[j] = vector < vectors ? load_past_l1(from + vector) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int j = 0; j < VECTORS; j++) held.fill(j, raw[j]);
    held.transform(own_swapping, row, warp, lane);
    if (SEGMENTS > 1 && HADAMARD > CHUNK * VECTORS) meet(row);  // shared memory is written again
  };
  // The largest of a vector's group, which lies in neighbouring lanes.
  const auto group_max = [&](int j) {
    u32 most = held.max_bits(j);
#pragma unroll
    for (int lanes = 1; lanes < GROUP / 8; lanes *= 2) most = max(most, __shfl_xor_sync(ALL, most, lanes));
    return most;
  };

  if (SEGMENTS == 1) load(0);
  Scale of_row;
  if (!GROUP || INTEGER_GROUPS) {
    u32 most = 0;
#pragma unroll 1
    for (int segment = 0; segment < SEGMENTS; segment++) {
      if (SEGMENTS > 1) load(segment);
#pragma unroll
      for (int j = 0; j < VECTORS; j++) most = max(most, held.max_bits(j));
    }
    most = max_of_warp(most);
    if (WARPS > 1) {
      if (lane == 0) maxima[row][warp] = most;
      meet(row);
      most = max_of_warp(maxima[row][lane < WARPS ? lane : 0]);
    }
    const float clipped = __fmul_rn(__uint_as_float(most), clip);
    of_row = Scale::of(clipped, STEPS);
    if (warp == 0 && lane == 0) scale[token] = __fmul_rn(of_row.scale, FACTOR);
  }

  const u32 pieces = (m + PIECE_TOKENS - 1) / PIECE_TOKENS, first_piece = piece_place(token, pieces, lane);
  const u32 place = first_piece + place_in_piece(token, lane);  // below 2^31, as all that follow
  int sum = 0;
#pragma unroll 1
  for (int segment = 0; segment < SEGMENTS; segment++) {
    if (SEGMENTS > 1) load(segment);
#pragma unroll
    for (int j = 0; j < VECTORS; j++) {
      const int chunk = segment * (SEGMENT / 32) + Segment::held(warp, j);
      const int vector = chunk * 32 + lane;
      const bool within = vector < (vectors + 15) / 16 * 16;  // zeros to the end of the last 128
      float inverse = of_row.inverse;
      u32 keep = of_row.keep;
      if (GROUP) {
        const float most = __fmul_rn(__uint_as_float(group_max(j)), clip);
        const bool first = vector % (GROUP ? GROUP / 8 : 1) == 0 && within;
        const u32 scale_place = first_piece + scale_place_in_piece(token, lane) + chunk * (2 * PIECE * pieces);
        u32* const group_scale = reinterpret_cast<u32*>(data) + scale_place;
        if (INTEGER_GROUPS) {
          // fmaxf passes over NaN: 0 / 0, or a row that holds one.
          const float steps = ceilf(__fdiv_rn(most, __fmul_rn(LIMIT, of_row.scale)));
          const float integer = fminf(fmaxf(steps, 1.0f), MAX_GROUP_SCALE);
          inverse = Scale::inverse_of(__fmul_rn(integer, of_row.scale), 1.0f);
          if (first) *group_scale = (u32)integer;
        } else {
          const Scale of_group = Scale::of(most, STEPS);
          inverse = of_group.inverse, keep = of_group.keep;
          if (first) *group_scale = __float_as_uint(__fmul_rn(of_group.scale, FACTOR));
        }
      }
      float values[8];
      held.read(j, values);
      u32 code[8];
      encode(values, inverse, clip < 1.0f, code);
      if (BITS == 8) {
        // Bytes 1 and 2 change places: BYTE_ORDER of kernels/formats.py.
        uint2 words = make_uint2(low_bytes(code[0], code[2], code[1], code[3]) & keep,
                                 low_bytes(code[4], code[6], code[5], code[7]) & keep);
        sum = __dp4a((int)words.x, 0x01010101, __dp4a((int)words.y, 0x01010101, sum));
        if (WGMMA) words = swap_words(words, lane);
        store_where(within, reinterpret_cast<uint2*>(data) + (place + chunk * (2 * PIECE * pieces)), words);
      } else {
        const u32 even = low_bytes(code[0], code[2], code[4], code[6]);
        const u32 odd = low_bytes(code[1], code[3], code[5], code[7]);
        const u32 word = ((even & 0x0F0F0F0Fu) | (odd << 4 & 0xF0F0F0F0u)) & keep;
        store_where(within, reinterpret_cast<u32*>(data) + (place + chunk * (2 * PIECE * pieces)), word);
      }
    }
  }

  if (BITS == 8) {
    sum = sum_of_warp(sum);
    if (WARPS > 1) {
      if (lane == 0) sums[row][warp] = sum;
      meet(row);
      // By all of the row's warps, or ptxas takes them for parted ones.
      sum = sum_of_warp(warp == 0 && lane < WARPS ? sums[row][lane] : 0);
    }
    if (warp == 0 && lane == 0) row_sum[token] = sum;
  }
}
