#pragma once
// What kernels use of the hardware beyond CUDA C++: asynchronous copies, barriers, matrix instructions.
// Shapes of fragments are those of the PTX manual; `lane` is the thread's index in its warp.
#include <cstdint>
#include <type_traits>

#include "cuda/runtime.h"

#ifdef NIWAKI_CUDA_EMULATED
#include "cuda/emulated/primitives.h"
#else

/// Declares `name`, the dynamic shared memory of the block, aligned to 1,024 bytes.
#define NIWAKI_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

namespace niwaki::cuda {

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// 16 bytes of memory that is read once: past the first-level cache.
__device__ inline uint4 load_streaming(const void* global) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(global));
  return v;
}

/// 2^x within 2 units in the last place; results below the normal numbers are 0.
__device__ inline float exp2_approx(float x) {
  float v;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(x));
  return v;
}

/// Adds to a counter that blocks meet at: what was written before by this thread, or before a __syncthreads()
/// by others of its block, is seen by those that find it counted, and what they do after a __syncthreads().
__device__ inline uint32_t add_meeting(uint32_t* counter, uint32_t x) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(counter), "r"(x)
               : "memory");
  return before;
}

/// __syncthreads() for `count` threads, whole warps of the block, at barrier 1 .. 15.
__device__ inline void sync_threads(int barrier, int count) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(count) : "memory");
}

/// Has a value computed before whatever waits after this.
template <class T>
__device__ inline void compute_now(T& x) {
  static_assert(sizeof x == 4 || sizeof x == 8);
  if constexpr (std::is_same_v<T, float>)
    asm volatile("" : "+f"(x)::"memory");
  else if constexpr (sizeof x == 4)
    asm volatile("" : "+r"(x)::"memory");
  else
    asm volatile("" : "+l"(x)::"memory");
}
/// Has the translation of an address at hand, and its line in the second-level cache, for a load to come.
__device__ inline void prefetch(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

// Programmatic dependent launch.

/// Waits until the kernels before this one in the stream have ended, and what they wrote can be read.
__device__ inline void wait_for_predecessor() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
/// Lets the kernel after this one start as soon as all blocks have called this or ended.
__device__ inline void start_successor() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// Copies by threads. Those of a thread since the last commit make a group.

/// 16 bytes from global to shared memory, both aligned to 16; zeros if not `valid`.
__device__ inline void copy_async(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Waits until at most `Pending` groups of this thread are left.
template <int Pending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// Barriers in shared memory (mbarrier), and copies that end at one.

/// By one thread; then fence_barriers() and __syncthreads() before others use it.
__device__ inline void init_barrier(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
}
__device__ inline void fence_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/// Arrives, and has the phase wait for so many bytes of bulk copies, too.
__device__ inline void arrive_expecting(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
__device__ inline void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
/// Waits until the phase of this parity (0, 1, 0, ...) has ended.
__device__ inline void wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}
/// By one thread: `bytes`, a multiple of 16, from global to shared memory, both aligned to 16; ends at the
/// barrier.
__device__ inline void copy_bulk(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}
/// Between stores to shared memory by threads and its reading by copy_bulk or wgmma.
__device__ inline void fence_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Matrix instructions of a warp.

/// Four matrices of 8 x 8 halves; lane l gives the address of row l % 8 of matrix l / 8 (16 bytes).
__device__ inline void load_matrices(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}
/// d += a b: m16n8k16, halves, sums in float32.
__device__ inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
      "%1, "
      "%2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/// d = popcount(a & b): m16n8k128, bits, sums in int32.
__device__ inline void mma_bits(int32_t (&d)[4], const uint32_t (&a)[2], uint32_t b) {
  asm("mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, "
      "%7, %7};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b), "r"(0));
}
/// d += popcount(a & b), likewise.
__device__ inline void add_mma_bits(int32_t (&d)[4], const uint32_t (&a)[2], uint32_t b) {
  asm("mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, "
      "%2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}
/// d += a b: m16n8k32, bytes without sign, sums in int32.
__device__ inline void add_mma_bytes(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
      "%1, "
      "%2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Matrix instructions of a warpgroup (four warps): D[64 x N] (+)= A[64 x 16] B[16 x N], halves, sums in
// float32. A from registers, warp w has rows 16 w ..; B in shared memory, K-major without swizzling: cores of
// 8 columns of N by 16 bytes of K, each 128 bytes in one piece.

/// `along_k`: bytes from a core to the next 8 of K; `along_n`: to the next 8 columns of N.
__device__ inline uint64_t describe_shared(const void* shared, uint32_t along_k, uint32_t along_n) {
  const auto field = [](uint32_t bytes) { return static_cast<uint64_t>((bytes & 0x3ffff) >> 4); };
  return field(shared_address(shared)) | field(along_k) << 16 | field(along_n) << 32;
}
/// By a whole warpgroup: changes its share of registers, in a kernel of launch bounds (threads, 1).
template <int Registers>
__device__ inline void lower_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
__device__ inline void raise_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}
/// Before the first of a row of wgmma, and when registers that it uses were written.
__device__ inline void fence_wgmma() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void commit_wgmma() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int Pending>
__device__ inline void wait_wgmma() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

}  // namespace niwaki::cuda

#include "cuda/wgmma.h"

#endif
