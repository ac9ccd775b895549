// rwkv_mlc: device functions
// What kernels for tensor cores call. PTX of sm_80, and what comes to the same on sm_75.

#if __CUDA_ARCH__ >= 800

static __device__ __forceinline__ void async_copy(void* shared_to, const void* from, bool inside) {
  unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared_to));
  int size = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(size) : "memory");
}

static __device__ __forceinline__ void async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

static __device__ __forceinline__ void async_wait(int pending) {
  switch (pending) {
    case 3: asm volatile("cp.async.wait_group 3;" ::: "memory"); break;
    case 2: asm volatile("cp.async.wait_group 2;" ::: "memory"); break;
    case 1: asm volatile("cp.async.wait_group 1;" ::: "memory"); break;
    default: asm volatile("cp.async.wait_group 0;" ::: "memory");
  }
}

#else

static __device__ __forceinline__ void async_copy(void* shared_to, const void* from, bool inside) {
  *static_cast<uint4*>(shared_to) = inside ? *static_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
}

static __device__ __forceinline__ void async_commit() {}

static __device__ __forceinline__ void async_wait(int) {}

#endif

static __device__ __forceinline__ void load_where(unsigned* to, const void* from, bool inside) {
  asm("{.reg .pred p; setp.ne.u32 p, %5, 0; @p ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];}"
      : "+r"(to[0]), "+r"(to[1]), "+r"(to[2]), "+r"(to[3])
      : "l"(__cvta_generic_to_global(from)), "r"(static_cast<unsigned>(inside)));
}

static __device__ __forceinline__ void load_matrices(unsigned* fragments, const void* row) {
  unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragments[0]), "=r"(fragments[1]), "=r"(fragments[2]), "=r"(fragments[3])
               : "r"(from)
               : "memory");
}

static __device__ __forceinline__ void multiply_matrices(float* sums, const unsigned* left, const unsigned* right) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
#else
  for (int half = 0; half < 2; ++half)
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[2 * half]), "r"(left[2 * half + 1]), "r"(right[half]));
#endif
}

static __device__ __forceinline__ unsigned multiply_add_pairs(unsigned a, unsigned b, unsigned c) {
  unsigned result;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}

// What the compiler makes of C has an instruction for each of two immediate numbers.
static __device__ __forceinline__ unsigned masked_or(unsigned word, unsigned mask, unsigned bits) {
  unsigned result;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(result) : "r"(word), "r"(mask), "r"(bits));
  return result;
}
// rwkv_mlc: end of device functions

