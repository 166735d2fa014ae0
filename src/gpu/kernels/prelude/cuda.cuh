// What the kernels use of the GPU, in CUDA C++ for NVRTC. `host.hpp` defines the same names for the CPU.
//
// Only PTX of sm_80 is used, so that one PTX text runs on every architecture from Ampere on. Fragments of matrices
// (`mma_*`, `load_matrices`) are laid out as the PTX manual says in "Matrix Fragments for mma.m16n8k16".

#define DEVICE static __device__ __forceinline__
// For code that is rarely used, to keep the program small.
#define DEVICE_CALLED static __device__ __noinline__
#define KERNEL(threads, name, ...) extern "C" __global__ void __launch_bounds__(threads) name(__VA_ARGS__)
// For kernels that need many registers: the compiler makes room for one block per multiprocessor only.
#define KERNEL_WITH_ROOM(threads, name, ...) extern "C" __global__ void __launch_bounds__(threads, 1) name(__VA_ARGS__)
// Shared memory of the block. The limit of static shared memory is 48 KiB.
#define SHARED(type, name) __shared__ __align__(16) type name
// Memory of the module that one kernel fills for the next. All kernels run in one stream, so no two launches use it at
// the same time.
#define SCRATCH(type, name, count) static __device__ type name[count]
#define RESTRICT __restrict__
#define UNROLL _Pragma("unroll")
#define PRAGMA(text) _Pragma(#text)
#define UNROLL_BY(count) PRAGMA(unroll (count))

#define THREAD ((int)threadIdx.x)
#define BLOCK_X ((int)blockIdx.x)
#define BLOCK_Y ((int)blockIdx.y)
#define BLOCK_Z ((int)blockIdx.z)

typedef uint4 Words;

DEVICE void block_barrier() { __syncthreads(); }

DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
DEVICE int shuffle_xor(int x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

DEVICE float float_of_bits(unsigned bits) { return __uint_as_float(bits); }
DEVICE unsigned bits_of_float(float x) { return __float_as_uint(x); }

DEVICE unsigned short round_to_bf16(float x) {
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

DEVICE unsigned round_to_bf16_pair(float low, float high) {
  unsigned bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

DEVICE float widen_f16(unsigned short bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}

DEVICE unsigned short round_to_f16(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

DEVICE unsigned round_to_f16_pair(float low, float high) {
  unsigned bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

// Approximates 2^x with a relative error below 2^-22. Subnormal results are 0.
DEVICE float exp2_approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Reads 16 bytes at a multiple of 16.
DEVICE Words load_words(const void* from) { return *(const Words*)from; }

// The same for values that this kernel reads once, such as weights: they do not displace others in the L1 cache.
DEVICE Words load_words_once(const void* from) {
  Words words;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
      : "l"(from));
  return words;
}

DEVICE void store_words(void* to, Words words) { *(Words*)to = words; }
DEVICE void store_word(void* to, unsigned word) { *(unsigned*)to = word; }

// Computes d += a b for a 16x16 matrix a and a 16x8 matrix b, spread over the warp. Volatile, because all lanes must
// execute it together: the compiler must not move it into a branch that only some of them take.
DEVICE void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE unsigned shared_address(const void* pointer) { return (unsigned)__cvta_generic_to_shared(pointer); }

// Reads four 8x8 matrices of 16-bit values from shared memory. Lane i gives the address of row i % 8 of matrix i / 8.
DEVICE void load_matrices(unsigned (&matrices)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same, with each matrix transposed.
DEVICE void load_matrices_transposed(unsigned (&matrices)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(shared_address(row))
               : "memory");
}

// Starts to copy 16 bytes from global to shared memory, or to write 16 zero bytes if `present` is false. `from` must
// point into memory even then. The bytes arrive at the next `wait_for_copies`.
DEVICE void copy_async(void* to, const void* from, bool present) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(to)), "l"(from), "r"(present ? 16 : 0)
               : "memory");
}

// Waits for the copies that this thread has started. Those of other threads need a barrier in addition.
DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;" : : : "memory"); }
