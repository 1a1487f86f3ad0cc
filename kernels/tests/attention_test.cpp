#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/attention_kernels.h"
#include "cpu/kv_cache.h"
#include "cpu/tier.h"
#include "tests/check.h"
#include "tests/random.h"

using namespace niwaki;
using niwaki::test::Random;

namespace {

struct Shape {
  int heads, kv_heads, head_dim, block_size;
  KvType type;
};

/// A sequence with its queries, keys and values, and where its pages are.
struct Sequence {
  int length;
  std::vector<int32_t> table;
  std::vector<float> q, k, v;  // [position][head][head_dim]
};

/// Each head of `x` as a page holds it.
std::vector<float> rounded(std::vector<float> x, int head_dim, KvType type) {
  if (type == KvType::kF16) {
    for (float& v : x) {
      // To 11 significant bits, as float16 has them for numbers of ordinary size.
      int e;
      const float m = std::frexp(v, &e);
      v = std::ldexp(std::nearbyint(m * 2048), e - 11);
    }
  } else if (type == KvType::kQ8) {
    const auto dim = static_cast<size_t>(head_dim);
    std::vector<int8_t> page(dim * 16 + 4 * 16);  // the store has tests of its own, below
    for (size_t head = 0; head < x.size(); head += dim) {
      available_tiers().back()->attention.store_value(&x[head], head_dim, 16, 0, type,
                                                      reinterpret_cast<std::byte*>(page.data()));
      float scale;
      std::memcpy(&scale, page.data() + dim * 16, 4);
      for (size_t d = 0; d < dim; ++d) x[head + d] = scale * static_cast<float>(page[d]);
    }
  }
  return x;
}

class Bench {
 public:
  Bench(const Shape& shape, std::vector<int> lengths, uint64_t seed) : shape_(shape), random_(seed) {
    int blocks = 3;  // some that nobody owns
    for (const int length : lengths) blocks += (length + shape.block_size - 1) / shape.block_size;
    std::vector<int32_t> free(static_cast<size_t>(blocks));
    for (size_t i = 0; i < free.size(); ++i) free[i] = static_cast<int32_t>(i);
    for (size_t i = free.size(); i-- > 1;)
      std::swap(free[i], free[static_cast<size_t>(random_.below(static_cast<int64_t>(i) + 1))]);
    blocks_ = blocks;
    for (const int length : lengths) {
      Sequence s;
      s.length = length;
      for (int b = 0; b * shape.block_size < length; ++b) {
        s.table.push_back(free.back());
        free.pop_back();
      }
      s.q = random_.normals(static_cast<size_t>(length * shape.heads * shape.head_dim), 2);
      s.k = random_.normals(static_cast<size_t>(length * shape.kv_heads * shape.head_dim));
      s.v = random_.normals(static_cast<size_t>(length * shape.kv_heads * shape.head_dim));
      sequences.push_back(std::move(s));
    }
  }

  /// The output of every position, [sequence][position][head][head_dim], its positions taken `tile` rows at a
  /// time.
  std::vector<std::vector<float>> run(const AttentionKernels& kernels, int tile_rows) {
    // Every slot holds NaN until it is written, and a tile is written just before it attends.
    CpuKvCache kv({1, shape_.kv_heads, shape_.head_dim, shape_.block_size, blocks_, shape_.type});
    std::memset(kv.keys(0, 0, 0), 0xff, kv.bytes());
    const int group = shape_.heads / shape_.kv_heads, dim = shape_.head_dim, block = shape_.block_size;
    const KvType type = shape_.type;
    std::vector<std::vector<float>> outs;
    for (const Sequence& s : sequences) {
      std::vector<float> out(s.q.size());
      for (int begin = 0; begin < s.length; begin += tile_rows) {
        const int rows = std::min(tile_rows, s.length - begin);
        for (int p = begin; p < begin + rows; ++p) {
          for (int h = 0; h < shape_.kv_heads; ++h) {
            const size_t at = static_cast<size_t>((p * shape_.kv_heads + h) * dim);
            const int32_t id = s.table[static_cast<size_t>(p / block)];
            CHECK(kernels.store_key(&s.k[at], dim, block, p % block, type, kv.keys(0, id, h)));
            CHECK(kernels.store_value(&s.v[at], dim, block, p % block, type, kv.values(0, id, h)));
          }
        }
        for (int h = 0; h < shape_.kv_heads; ++h) {
          std::vector<float> scratch(static_cast<size_t>(attention_scratch(rows * group, dim, block)), NAN);
          const size_t at = static_cast<size_t>((begin * shape_.heads + h * group) * dim);
          const int64_t stride = shape_.heads * dim;
          const AttentionTile::Next next{s.table.data(), static_cast<int32_t>(s.table.size()), 0};
          kernels.attend({&s.q[at], stride, rows, group, dim, begin, s.table.data(), kv.layer(0), kv.layout(),
                          h, block, type, 1 / std::sqrt(static_cast<float>(dim)), &out[at], stride,
                          scratch.data(), next});
        }
      }
      outs.push_back(std::move(out));
    }
    return outs;
  }

  /// Largest difference to softmax(q k / sqrt d) v in double.
  double error(const std::vector<std::vector<float>>& outs) const {
    double worst = 0;
    const int group = shape_.heads / shape_.kv_heads, dim = shape_.head_dim;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const Sequence& s = sequences[i];
      const std::vector<float> k = rounded(s.k, dim, shape_.type), v = rounded(s.v, dim, shape_.type);
      for (int p = 0; p < s.length; ++p) {
        for (int h = 0; h < shape_.heads; ++h) {
          const float* q = &s.q[static_cast<size_t>((p * shape_.heads + h) * dim)];
          const auto page = [&](const std::vector<float>& x, int t) {
            return &x[static_cast<size_t>((t * shape_.kv_heads + h / group) * dim)];
          };
          std::vector<double> weights;
          double max = -INFINITY, sum = 0;
          for (int t = 0; t <= p; ++t) {
            double score = 0;
            for (int d = 0; d < dim; ++d) score += static_cast<double>(q[d]) * page(k, t)[d];
            weights.push_back(score / std::sqrt(static_cast<double>(dim)));
            max = std::max(max, weights.back());
          }
          for (double& w : weights) sum += w = std::exp(w - max);
          for (int d = 0; d < dim; ++d) {
            double exact = 0;
            for (int t = 0; t <= p; ++t) exact += weights[static_cast<size_t>(t)] / sum * page(v, t)[d];
            const double got = outs[i][static_cast<size_t>((p * shape_.heads + h) * dim + d)];
            worst = std::max(worst, std::isfinite(got) ? std::fabs(got - exact) : INFINITY);
          }
        }
      }
    }
    return worst;
  }

  std::vector<Sequence> sequences;

 private:
  Shape shape_;
  Random random_;
  int blocks_;
};

const Shape kShapes[] = {
    {4, 2, 64, 16, KvType::kF16}, {8, 2, 128, 32, KvType::kF16}, {3, 1, 80, 16, KvType::kF32},
    {4, 4, 16, 48, KvType::kF16}, {6, 2, 128, 16, KvType::kF32}, {16, 1, 64, 16, KvType::kF16},
    {4, 1, 128, 16, KvType::kQ8}, {4, 2, 80, 32, KvType::kQ8},   {3, 3, 48, 80, KvType::kQ8},
    {5, 1, 16, 16, KvType::kQ8},
};

}  // namespace

TEST(matches_double_with_scattered_blocks) {
  for (const Shape& shape : kShapes) {
    Bench bench(shape, {1, 50, 16, 17, 97, 150}, 7);
    const double error = bench.error(bench.run(available_tiers().front()->attention, 8));
    CHECK(error < 5e-6);  // scores up to some 20, summed in float32
  }
}

TEST(every_tier_and_every_tiling_has_the_same_bits) {
  for (const Shape& shape : kShapes) {
    Bench bench(shape, {70, 33, 140}, 8);
    const auto first = bench.run(available_tiers().back()->attention, 1);
    for (const Tier* tier : available_tiers()) {
      for (const int rows : {1, 7, 16, 70}) CHECK(bench.run(tier->attention, rows) == first);
    }
  }
}

TEST(very_unequal_scores_stay_exact) {
  for (const Tier* tier : available_tiers()) {
    Bench bench({2, 1, 32, 16, KvType::kF32}, {40}, 9);
    for (float& q : bench.sequences[0].q) q *= 200;
    CHECK(bench.error(bench.run(tier->attention, 16)) < 2e-4);
  }
}

TEST(stores_tell_what_a_page_cannot_hold) {
  for (const Tier* tier : available_tiers()) {
    const auto fits = [&](float value, KvType type) {
      std::vector<float> x(32, 1.0f);
      x[19] = value;
      std::vector<std::byte> page(32 * 16 * 4);
      const bool key = tier->attention.store_key(x.data(), 32, 16, 3, type, page.data());
      CHECK(key == tier->attention.store_value(x.data(), 32, 16, 3, type, page.data()));
      return key;
    };
    CHECK(fits(65504, KvType::kF16) && fits(-65519, KvType::kF16));
    CHECK(!fits(65520, KvType::kF16) && !fits(-1e9f, KvType::kF16));
    CHECK(fits(1e9f, KvType::kF32) && fits(-3.4e38f, KvType::kQ8));
    for (const KvType type : {KvType::kF16, KvType::kF32, KvType::kQ8})
      CHECK(!fits(NAN, type) && !fits(INFINITY, type) && !fits(-INFINITY, type));
  }
}

TEST(integers_are_the_nearest_at_a_scale_no_worse_than_that_of_the_largest) {
  constexpr int kDim = 64, kBlock = 16, kSlot = 5;
  const auto squared_error = [](const std::vector<float>& x, double scale) {
    double sum = 0;
    for (const float v : x) sum += std::pow(v - std::nearbyint(v / scale) * scale, 2);
    return sum;
  };
  Random random(11);
  double least = 0, usual = 0;
  for (int i = 0; i < 40; ++i) {
    std::vector<float> x = random.normals(kDim);
    float largest = 0;
    for (float& v : x) {
      if (i % 4 == 3) v *= 0x1p-110f;  // squares below the range of a float
      if (i % 4 == 2) v *= 0x1p120f;   // and above
      largest = std::max(largest, std::fabs(v));
    }
    std::vector<int8_t> first;
    for (const Tier* tier : available_tiers()) {
      std::vector<int8_t> keys(kDim * kBlock + 4 * kBlock, -128), values = keys;  // no integer is -128
      const auto page = [](std::vector<int8_t>& p) { return reinterpret_cast<std::byte*>(p.data()); };
      CHECK(tier->attention.store_key(x.data(), kDim, kBlock, kSlot, KvType::kQ8, page(keys)));
      CHECK(tier->attention.store_value(x.data(), kDim, kBlock, kSlot, KvType::kQ8, page(values)));
      if (first.empty()) first = keys;
      CHECK(keys == first);
      float scale, other;
      std::memcpy(&scale, keys.data() + kDim * kBlock + 4 * kSlot, 4);
      std::memcpy(&other, values.data() + kDim * kBlock + 4 * kSlot, 4);
      CHECK(scale == other && scale >= largest / 127.5f && scale <= largest / 124);
      for (int d = 0; d < kDim; ++d) {
        const int8_t got = keys[static_cast<size_t>(d * kBlock + kSlot)];
        CHECK(got == values[static_cast<size_t>(kSlot * kDim + d)]);
        CHECK(std::fabs(x[static_cast<size_t>(d)] / scale - static_cast<float>(got)) < 0.50002f);
      }
      // Nothing else of the page is touched.
      CHECK(std::count(keys.begin(), keys.begin() + kDim * kBlock, -128) == kDim * (kBlock - 1));
      CHECK(std::count(values.begin(), values.begin() + kDim * kBlock, -128) == kDim * (kBlock - 1));
      if (tier == available_tiers().front()) {
        least += squared_error(x, scale) / largest / largest;
        usual += squared_error(x, largest / 127) / largest / largest;
      }
    }
  }
  CHECK(least < 0.95 * usual);
}

TEST(ties_are_rounded_to_even_and_the_tiniest_numbers_to_zero) {
  for (const Tier* tier : available_tiers()) {
    std::vector<int8_t> page(16 * 16 + 4 * 16);
    const auto store = [&](const std::vector<float>& x) {
      CHECK(tier->attention.store_value(x.data(), 16, 16, 0, KvType::kQ8,
                                        reinterpret_cast<std::byte*>(page.data())));
      float scale;
      std::memcpy(&scale, page.data() + 16 * 16, 4);
      return scale;
    };
    // A scale of 1 leaves no error but for two halves, less than any other scale does.
    CHECK(store({127, 0.5f, -1.5f, 2, 3, 100, -99, 64, 31, 55, 77, -88, 45, 121, -117, 13}) == 1.0f);
    CHECK(page[0] == 127 && page[1] == 0 && page[2] == -2 && page[6] == -99 && page[15] == 13);
    for (const float largest : {0.0f, 190 * 0x1p-149f}) {
      CHECK(store(std::vector<float>(16, largest)) == 0);
      CHECK(std::count(page.begin(), page.begin() + 16, 0) == 16);
    }
  }
}

TEST_MAIN()
