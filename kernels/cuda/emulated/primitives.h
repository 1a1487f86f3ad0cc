#pragma once
// The functions of cuda/primitives.h, on the emulated threads.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda/emulated/threads.h"

#define NIWAKI_DYNAMIC_SHARED(name) unsigned char* const name = ::niwaki::cuda::emulated::dynamic_shared()

namespace niwaki::cuda {

namespace emulated {

uint32_t shared_address(const void* pointer);

void copy_async(void* shared, const void* global, bool valid);
void commit_copies();
void wait_copies(int pending);

void init_barrier(uint64_t* barrier, uint32_t arrivals);
void arrive(uint64_t* barrier, uint32_t bytes);
void wait(uint64_t* barrier, uint32_t parity, const Where& where);
void copy_bulk(void* shared, const void* global, uint32_t bytes, uint64_t* barrier);

struct LoadMatrices {
  uint32_t* r;
  const void* row;
};
void load_matrices(void* const (&arguments)[32], uint32_t mask);
void load_matrices_transposed(void* const (&arguments)[32], uint32_t mask);

template <class Sum>
struct Mma {
  Sum* d;
  const uint32_t *a, *b;
};
void mma_f16(void* const (&arguments)[32], uint32_t mask);
void mma_bits(void* const (&arguments)[32], uint32_t mask);
void mma_bytes(void* const (&arguments)[32], uint32_t mask);

struct Wgmma {
  float* d;
  const uint32_t* a;
  uint64_t b;
  int n;
  bool accumulate;
};
void begin_wgmma(void* const (&arguments)[32], uint32_t mask);
void fence_wgmma(void* const (&arguments)[32], uint32_t mask);
void commit_wgmma(void* const (&arguments)[32], uint32_t mask);
void wait_wgmma(void* const (&arguments)[32], uint32_t mask);

}  // namespace emulated

inline uint32_t shared_address(const void* pointer) {
  return emulated::shared_address(pointer);
}
inline uint4 load_streaming(const void* global) {
  uint4 v;
  std::memcpy(&v, __builtin_assume_aligned(global, 16), sizeof v);
  return v;
}
inline float exp2_approx(float x) {
  return std::exp2(x);
}

inline uint32_t add_meeting(uint32_t* counter, uint32_t x) {
  return __atomic_fetch_add(counter, x, __ATOMIC_ACQ_REL);
}

template <class T>
void compute_now(T&) {}
inline void prefetch(const void*) {}

inline void wait_for_predecessor() {}
inline void start_successor() {}

inline void sync_threads(int barrier, int count, NIWAKI_WHERE) {
  if (barrier < 1 || barrier > 15 || count <= 0 || count % 32 != 0)
    emulated::fail("sync_threads: barriers 1 .. 15, whole warps");
  emulated::meet_block(barrier, count, false, "sync_threads", where);
}

inline void copy_async(void* shared, const void* global, bool valid = true) {
  emulated::copy_async(shared, global, valid);
}
inline void commit_copies() {
  emulated::commit_copies();
}
template <int Pending>
void wait_copies() {
  emulated::wait_copies(Pending);
}

inline void init_barrier(uint64_t* barrier, uint32_t arrivals) {
  emulated::init_barrier(barrier, arrivals);
}
inline void fence_barriers() {}
inline void arrive_expecting(uint64_t* barrier, uint32_t bytes) {
  emulated::arrive(barrier, bytes);
}
inline void arrive(uint64_t* barrier) {
  emulated::arrive(barrier, 0);
}
inline void wait(uint64_t* barrier, uint32_t parity, NIWAKI_WHERE) {
  emulated::wait(barrier, parity, where);
}
inline void copy_bulk(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  emulated::copy_bulk(shared, global, bytes, barrier);
}
inline void fence_async() {}

inline void load_matrices(uint32_t (&r)[4], const void* shared_row, NIWAKI_WHERE) {
  emulated::LoadMatrices mine{r, shared_row};
  emulated::meet_warp(~0u, "load_matrices", emulated::load_matrices, &mine, where);
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void* shared_row, NIWAKI_WHERE) {
  emulated::LoadMatrices mine{r, shared_row};
  emulated::meet_warp(~0u, "load_matrices_transposed", emulated::load_matrices_transposed, &mine, where);
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], NIWAKI_WHERE) {
  emulated::Mma<float> mine{d, a, b};
  emulated::meet_warp(~0u, "mma_f16", emulated::mma_f16, &mine, where);
}
inline void mma_bits(int32_t (&d)[4], const uint32_t (&a)[2], uint32_t b, NIWAKI_WHERE) {
  emulated::Mma<int32_t> mine{d, a, &b};
  emulated::meet_warp(~0u, "mma_bits", emulated::mma_bits, &mine, where);
}

inline void add_mma_bits(int32_t (&d)[4], const uint32_t (&a)[2], uint32_t b, NIWAKI_WHERE) {
  int32_t more[4];
  mma_bits(more, a, b, where);
  for (int i = 0; i < 4; ++i) d[i] += more[i];
}
inline void add_mma_bytes(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], NIWAKI_WHERE) {
  emulated::Mma<int32_t> mine{d, a, b};
  emulated::meet_warp(~0u, "add_mma_bytes", emulated::mma_bytes, &mine, where);
}

inline uint64_t describe_shared(const void* shared, uint32_t along_k, uint32_t along_n) {
  const uint32_t address = shared_address(shared);
  if ((address | along_k | along_n) % 16 != 0) emulated::fail("describe_shared: not in units of 16 bytes");
  const auto field = [](uint32_t bytes) { return static_cast<uint64_t>((bytes & 0x3ffff) >> 4); };
  return field(address) | field(along_k) << 16 | field(along_n) << 32;
}
inline void fence_wgmma(NIWAKI_WHERE) {
  emulated::meet_warp(~0u, "fence_wgmma", emulated::fence_wgmma, nullptr, where);
}
inline void commit_wgmma(NIWAKI_WHERE) {
  emulated::meet_warp(~0u, "commit_wgmma", emulated::commit_wgmma, nullptr, where);
}
template <int Pending>
void wait_wgmma(NIWAKI_WHERE) {
  int pending = Pending;
  emulated::meet_warp(~0u, "wait_wgmma", emulated::wait_wgmma, &pending, where);
}
template <int N>
void wgmma_f16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate, NIWAKI_WHERE) {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256);
  emulated::Wgmma mine{d, a, b, N, accumulate};
  emulated::meet_warp(~0u, "wgmma_f16", emulated::begin_wgmma, &mine, where);
}

template <int Registers>
inline void lower_registers() {}
template <int Registers>
inline void raise_registers() {}

}  // namespace niwaki::cuda
