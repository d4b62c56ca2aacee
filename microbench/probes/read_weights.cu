// What the bytes of a packed weight cost at least: read once from device memory, nothing else done. Two ways to share
// them out, because neither wins at every size; the bound is the faster one. A thread issues IN_FLIGHT loads of 16 bytes
// before it uses the first: 64 KB in flight an SM with 512 threads twice or 1024 once.
typedef unsigned int u32;
typedef unsigned long long u64;

struct Vector {
  u32 x, y, z, w;
};

static __device__ Vector load(const Vector* from) {
  Vector v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
  return v;
}

static __device__ u32 fold(const Vector& v) { return v.x ^ v.y ^ v.z ^ v.w; }

// Vectors first, first + step, … below end.
static __device__ u32 read(const Vector* from, u64 first, u64 end, u32 step) {
  u32 sum = 0;
  u64 i = first;
  for (; i + (IN_FLIGHT - 1) * step < end; i += IN_FLIGHT * step) {
    Vector v[IN_FLIGHT];
#pragma unroll
    for (int j = 0; j < IN_FLIGHT; j++) v[j] = load(from + i + j * step);
#pragma unroll
    for (int j = 0; j < IN_FLIGHT; j++) sum ^= fold(v[j]);
  }
  Vector rest[IN_FLIGHT];  // together too: one after the other they would take longer than all before them
#pragma unroll
  for (int j = 0; j < IN_FLIGHT; j++) rest[j] = i + j * step < end ? load(from + i + j * step) : Vector{0, 0, 0, 0};
#pragma unroll
  for (int j = 0; j < IN_FLIGHT; j++) sum ^= fold(rest[j]);
  return sum;
}

// The sum of random data is hardly ever the value asked for; the compiler cannot know and keeps the loads.
static __device__ void keep(u32 sum, u32* sink) {
  if (sum == 0x12345678u) *sink = sum;
}

// Every CTA reads one contiguous slice.
extern "C" __global__ void __launch_bounds__(THREADS, CTAS_PER_SM) slices(const Vector* from, u32* sink, u64 vectors) {
  const u64 size = (vectors + gridDim.x - 1) / gridDim.x, first = size * blockIdx.x;
  const u64 end = first + size < vectors ? first + size : vectors;
  keep(read(from, first + threadIdx.x, end, THREADS), sink);
}

// All CTAs advance together through the weight.
extern "C" __global__ void __launch_bounds__(THREADS, CTAS_PER_SM) strided(const Vector* from, u32* sink, u64 vectors) {
  keep(read(from, (u64)blockIdx.x * THREADS + threadIdx.x, vectors, gridDim.x * THREADS), sink);
}
