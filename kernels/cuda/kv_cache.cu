#include "cuda/kv_cache.h"
#include "niwaki/error.h"

namespace niwaki::cuda {
namespace {

/// Copies between places on the device may still run when cudaMemcpy returns.
void finish_copies() {
  check(cudaStreamSynchronize(nullptr), "waiting for a copy of KV blocks");
}

}  // namespace

CudaKvCache::CudaKvCache(const KvShape& shape) : KvCache(shape) {
  if (shape.type == KvType::kF32)
    throw Error(ErrorCode::kUnsupported, "KV cache: float32 pages are for the CPU; use f16 or q8");
  check(cudaMalloc(reinterpret_cast<void**>(&memory_), bytes()),
        "allocating a KV cache of " + std::to_string(bytes()) + " bytes");
  check(cudaMemset(memory_, 0, bytes()), "clearing a KV cache");
  finish_copies();
}

CudaKvCache::~CudaKvCache() {
  cudaFree(memory_);
}

KvPages CudaKvCache::pages(int32_t layer) const {
  const KvShape& s = shape();
  return {piece(layer, 0), page_bytes(s), s.kv_heads, s.head_dim, s.block_size, s.type};
}

void CudaKvCache::copy_block(int32_t from, int32_t to) {
  check_block(from);
  check_block(to);
  if (from == to) return;
  for (int32_t layer = 0; layer < shape().layers; ++layer) {
    check(cudaMemcpyAsync(piece(layer, to), piece(layer, from), piece_bytes(), cudaMemcpyDeviceToDevice,
                          nullptr),
          "copying a KV block");
  }
  finish_copies();
}

void CudaKvCache::read_block(int32_t block, std::byte* out) const {
  check_block(block);
  for (int32_t layer = 0; layer < shape().layers; ++layer, out += piece_bytes())
    check(cudaMemcpy(out, piece(layer, block), piece_bytes(), cudaMemcpyDeviceToHost), "reading a KV block");
}

void CudaKvCache::write_block(int32_t block, const std::byte* bytes) {
  check_block(block);
  for (int32_t layer = 0; layer < shape().layers; ++layer, bytes += piece_bytes())
    check(cudaMemcpy(piece(layer, block), bytes, piece_bytes(), cudaMemcpyHostToDevice),
          "writing a KV block");
  finish_copies();
}

}  // namespace niwaki::cuda
