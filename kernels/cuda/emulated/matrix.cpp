// Matrix instructions. Fragments are as in the PTX manual; a lane is 4 group + position there.
#include <algorithm>
#include <bit>
#include <cstring>

#include "cpu/float16.h"
#include "cuda/emulated/block.h"
#include "cuda/emulated/primitives.h"

namespace niwaki::cuda::emulated {

namespace {

const unsigned char* row_of(void* const (&arguments)[32], int row) {
  const void* address = static_cast<const LoadMatrices*>(arguments[row])->row;
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0) fail("load_matrices: rows must be at multiples of 16");
  return static_cast<const unsigned char*>(address);
}

float low_half(uint32_t pair) {
  return half_to_float(static_cast<uint16_t>(pair));
}
float high_half(uint32_t pair) {
  return half_to_float(static_cast<uint16_t>(pair >> 16));
}

/// A's fragment of m16n8k16 and of a warp's share of wgmma.
void unpack_a(int lane, const uint32_t* a, float (&matrix)[16][16]) {
  const int row = lane / 4, column = lane % 4 * 2;
  for (int i = 0; i < 4; ++i) {
    float* pair = matrix[row + i % 2 * 8] + column + i / 2 * 8;
    pair[0] = low_half(a[i]);
    pair[1] = high_half(a[i]);
  }
}

/// A row of eight.
using Eight = double __attribute__((vector_size(64)));

/// sums[16][n] += a[16][16] b[16][n], n in eights. Products of halves are exact in float64.
void add_product(Eight* sums, const float (&a)[16][16], const Eight* b, int eights) {
  for (int row = 0; row < 16; ++row) {
    for (int j = 0; j < eights; ++j) {
      Eight sum = sums[row * eights + j];
      for (int k = 0; k < 16; ++k) sum += static_cast<double>(a[row][k]) * b[k * eights + j];
      sums[row * eights + j] = sum;
    }
  }
}

template <class Sum>
const Mma<Sum>& operands(void* const (&arguments)[32], int lane) {
  return *static_cast<const Mma<Sum>*>(arguments[lane]);
}

/// Where a lane's sum i of m16n8 is.
int row_of_sum(int lane, int i) {
  return lane / 4 + i / 2 * 8;
}
int column_of_sum(int lane, int i) {
  return lane % 4 * 2 + i % 2;
}

}  // namespace

void load_matrices(void* const (&arguments)[32], uint32_t) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    for (int row = 0; row < 8; ++row) {
      const unsigned char* from = row_of(arguments, matrix * 8 + row);
      for (int pair = 0; pair < 4; ++pair) {
        std::memcpy(static_cast<const LoadMatrices*>(arguments[row * 4 + pair])->r + matrix, from + pair * 4,
                    4);
      }
    }
  }
}

void load_matrices_transposed(void* const (&arguments)[32], uint32_t) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    for (int pair = 0; pair < 4; ++pair) {
      const unsigned char* even = row_of(arguments, matrix * 8 + pair * 2);
      const unsigned char* odd = row_of(arguments, matrix * 8 + pair * 2 + 1);
      for (int column = 0; column < 8; ++column) {
        uint16_t low, high;
        std::memcpy(&low, even + column * 2, 2);
        std::memcpy(&high, odd + column * 2, 2);
        static_cast<const LoadMatrices*>(arguments[column * 4 + pair])->r[matrix] =
            low | static_cast<uint32_t>(high) << 16;
      }
    }
  }
}

void mma_f16(void* const (&arguments)[32], uint32_t) {
  float a[16][16];
  Eight b[16], sums[16] = {};
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = operands<float>(arguments, lane);
    unpack_a(lane, mine.a, a);
    const int k = lane % 4 * 2, n = lane / 4;
    for (int i = 0; i < 2; ++i) {
      b[k + i * 8][n] = low_half(mine.b[i]);
      b[k + i * 8 + 1][n] = high_half(mine.b[i]);
    }
  }
  add_product(sums, a, b, 1);
  for (int lane = 0; lane < 32; ++lane) {
    float* d = operands<float>(arguments, lane).d;
    for (int i = 0; i < 4; ++i) {
      d[i] = static_cast<float>(d[i] + sums[row_of_sum(lane, i)][column_of_sum(lane, i)]);
    }
  }
}

void mma_bits(void* const (&arguments)[32], uint32_t) {
  uint32_t a[16][4], b[8][4];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = operands<int32_t>(arguments, lane);
    a[lane / 4][lane % 4] = mine.a[0];
    a[lane / 4 + 8][lane % 4] = mine.a[1];
    b[lane / 4][lane % 4] = mine.b[0];
  }
  for (int lane = 0; lane < 32; ++lane) {
    int32_t* d = operands<int32_t>(arguments, lane).d;
    for (int i = 0; i < 4; ++i) {
      const uint32_t *row = a[row_of_sum(lane, i)], *column = b[column_of_sum(lane, i)];
      d[i] = 0;
      for (int k = 0; k < 4; ++k) d[i] += std::popcount(row[k] & column[k]);
    }
  }
}

void mma_bytes(void* const (&arguments)[32], uint32_t) {
  uint8_t a[16][32], b[8][32];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = operands<int32_t>(arguments, lane);
    const int row = lane / 4, k = lane % 4 * 4;
    for (int i = 0; i < 4; ++i) std::memcpy(a[row + i % 2 * 8] + k + i / 2 * 16, mine.a + i, 4);
    for (int i = 0; i < 2; ++i) std::memcpy(b[row] + k + i * 16, mine.b + i, 4);
  }
  for (int lane = 0; lane < 32; ++lane) {
    int32_t* d = operands<int32_t>(arguments, lane).d;
    for (int i = 0; i < 4; ++i) {
      for (int k = 0; k < 32; ++k) d[i] += a[row_of_sum(lane, i)][k] * b[column_of_sum(lane, i)][k];
    }
  }
}

void multiply(Product& product) {
  float a[16][16];
  static Eight b[16 * 32], sums[16 * 32];  // too large for a thread's stack
  const int n = product.n, eights = n / 8;
  std::fill(sums, sums + 16 * eights, Eight{});
  for (int lane = 0; lane < 32; ++lane) unpack_a(lane, product.a[lane], a);
  for (int k = 0; k < 16; ++k) {
    for (int j = 0; j < n; ++j) {
      uint16_t half;
      std::memcpy(&half,
                  block.shared + product.base + static_cast<uint32_t>(k / 8) * product.along_k +
                      static_cast<uint32_t>(j / 8) * product.along_n + j % 8 * 16 + k % 8 * 2,
                  sizeof half);
      b[k * eights + j / 8][j % 8] = half_to_float(half);
    }
  }
  add_product(sums, a, b, eights);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < n / 2; ++i) {
      const double sum = sums[row_of_sum(lane, i % 4) * eights + i / 4][column_of_sum(lane, i % 4)];
      float& d = product.sums[lane][i];
      d = static_cast<float>(product.accumulate ? d + sum : sum);
    }
  }
}

}  // namespace niwaki::cuda::emulated
