// Heads, KV pages and paged attention of the CUDA kernels: on the emulator, or compiled by nvcc on a GPU.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>

#include "cpu/float16.h"
#include "cpu/rope.h"
#include "cuda/attention.h"
#include "cuda/heads.h"
#include "niwaki/error.h"
#include "tests/check.h"
#include "tests/random.h"

using namespace niwaki;
using namespace niwaki::cuda;
using niwaki::test::Random;

namespace {

/// An array in device memory.
template <class T>
class Array {
 public:
  explicit Array(const std::vector<T>& values) : count_(std::max<size_t>(values.size(), 1)) {
    check(cudaMalloc(reinterpret_cast<void**>(&device_), count_ * sizeof(T)), "a test's array");
    check(cudaMemcpy(device_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
          "a test's array");
  }
  ~Array() { cudaFree(device_); }
  Array(const Array&) = delete;

  T* get() const { return device_; }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    check(cudaDeviceSynchronize(), "a test's kernels");
    check(cudaMemcpy(values.data(), device_, count_ * sizeof(T), cudaMemcpyDeviceToHost), "a test's array");
    return values;
  }

 private:
  T* device_ = nullptr;
  size_t count_;
};

struct Shape {
  int heads, kv_heads, head_dim, block_size;
  KvType type;
  int group() const { return heads / kv_heads; }
  int width() const { return (heads + 2 * kv_heads) * head_dim; }
  QkvLayout layout() const { return {heads, kv_heads, head_dim}; }
};

constexpr int kBeyond = 3;  // rows of a launch that are not the step's
constexpr int kOp = 5;      // of the norm; the store is the next, then attention

/// A step in device memory.
struct DeviceStep {
  DeviceStep(const Step& step, const std::vector<AttentionItem>& items)
      : rows(static_cast<int>(step.tokens.size())),
        counts({{rows, 0, static_cast<int>(step.sequences.size()), static_cast<int>(items.size())}}),
        positions(rows_of(
            step, [](const StepSequence& s, int, int i) { return s.context_length - s.row_count + i; })),
        sequences(rows_of(step, [](const StepSequence&, int sequence, int) { return sequence; })),
        table_begins(begins(step)),
        tables(all_tables(step)),
        items(with_room(items)),
        first_bad({~0ull}) {}

  StepView view() const {
    StepView v{};
    v.counts = counts.get();
    v.positions = positions.get();
    v.sequences = sequences.get();
    v.table_begins = table_begins.get();
    v.tables = tables.get();
    v.items = items.get();
    v.first_bad = first_bad.get();
    return v;
  }

  static std::vector<AttentionItem> with_room(std::vector<AttentionItem> items) {
    items.resize(std::max<size_t>(items.size(), 8));  // blocks of a launch
    return items;
  }
  template <class F>
  static std::vector<int32_t> rows_of(const Step& step, F&& f) {
    std::vector<int32_t> values;
    for (size_t s = 0; s < step.sequences.size(); ++s) {
      for (int i = 0; i < step.sequences[s].row_count; ++i)
        values.push_back(f(step.sequences[s], static_cast<int>(s), i));
    }
    values.insert(values.end(), kBeyond, 0x7f7f7f7f);
    return values;
  }
  static std::vector<int32_t> begins(const Step& step) {
    std::vector<int32_t> values;
    int32_t begin = 0;
    for (const StepSequence& s : step.sequences) {
      values.push_back(begin);
      begin += static_cast<int32_t>(s.block_table.size());
    }
    return values;
  }
  static std::vector<int32_t> all_tables(const Step& step) {
    std::vector<int32_t> values;
    for (const StepSequence& s : step.sequences)
      values.insert(values.end(), s.block_table.begin(), s.block_table.end());
    return values;
  }

  int rows;
  Array<StepView::Counts> counts;
  Array<int32_t> positions, sequences, table_begins, tables;
  Array<AttentionItem> items;
  Array<unsigned long long> first_bad;
};

/// What of a sequence runs in a step.
struct Part {
  int sequence, rows;
};
using Schedule = std::vector<std::vector<Part>>;

/// How items are made and run.
struct Running {
  int processors = 4;  // few: nothing is split; many: all is
  int blocks = 3;
  int records = 1 << 14;
  bool wide = true;
  enum {
    kStored,
    kNormed,
    kFused
  } heads = kStored;  // what is done with heads before; kFused: in attention, if it can
  bool finite = true;
};

/// Sequences with their queries, keys and values, in scattered blocks that hold NaN until they are written.
class Bench {
 public:
  struct Sequence {
    int length;
    std::vector<int32_t> table;
    std::vector<float> qkv;  // [position][width]
  };

  Bench(const Shape& shape, const std::vector<int>& lengths, uint64_t seed) : shape(shape) {
    Random random(seed);
    int blocks = 3;  // some that nobody owns
    for (const int length : lengths) blocks += (length + shape.block_size - 1) / shape.block_size;
    std::vector<int32_t> free(static_cast<size_t>(blocks));
    std::iota(free.begin(), free.end(), 0);
    for (size_t i = free.size(); i-- > 1;)
      std::swap(free[i], free[static_cast<size_t>(random.below(static_cast<int64_t>(i) + 1))]);
    blocks_ = blocks;
    for (const int length : lengths) {
      Sequence s{length, {}, random.normals(static_cast<size_t>(length * shape.width()))};
      for (int p = 0; p < length; ++p) {
        for (int i = 0; i < shape.heads * shape.head_dim; ++i)
          s.qkv[static_cast<size_t>(p * shape.width() + i)] *= 2;
      }
      for (int b = 0; b * shape.block_size < length; ++b) {
        s.table.push_back(free.back());
        free.pop_back();
      }
      sequences.push_back(std::move(s));
    }
  }

  /// A cache whose every byte is 0xff.
  std::unique_ptr<CudaKvCache> poisoned(int layers = 2) const {
    auto kv = std::make_unique<CudaKvCache>(
        KvShape{layers, shape.kv_heads, shape.head_dim, shape.block_size, blocks_, shape.type});
    const std::vector<std::byte> nan(kv->all_layers_bytes(), std::byte{0xff});
    for (int block = 0; block < blocks_; ++block) kv->write_block(block, nan.data());
    return kv;
  }

  /// [sequence][position][heads * head_dim]; steps that end before `from` store, but do not attend. `attend`
  /// instead of launch_attention.
  using Attend = std::function<void(const StepView&, const Attention&)>;
  std::vector<std::vector<float>> run(const Schedule& schedule, const Running& running = {}, int from = 0,
                                      const Attend& attend = {}) const {
    const auto kv = poisoned();
    const int layer = 1, width = shape.width(), wide = shape.heads * shape.head_dim;
    std::vector<std::vector<float>> outs;
    for (const Sequence& s : sequences) outs.emplace_back(static_cast<size_t>(s.length * wide), NAN);
    std::vector<int> done(sequences.size());
    prepare_attention();
    const std::vector<uint8_t> zeros(attention_scratch_bytes(running.records, shape.head_dim));
    const Array<uint8_t> scratch(zeros);
    Random random(5);
    const Array<float> q_norm(random.normals(static_cast<size_t>(shape.head_dim))),
        k_norm(random.normals(static_cast<size_t>(shape.head_dim)));
    fused_steps = 0;

    for (const auto& parts : schedule) {
      Step step;
      std::vector<float> qkv;
      bool attends = false;
      for (const Part& part : parts) {
        const Sequence& s = sequences[static_cast<size_t>(part.sequence)];
        int& at = done[static_cast<size_t>(part.sequence)];
        qkv.insert(qkv.end(), s.qkv.begin() + at * width, s.qkv.begin() + (at + part.rows) * width);
        at += part.rows;
        attends |= at > from;
        step.sequences.push_back({part.rows, at, s.table});
        step.tokens.resize(step.tokens.size() + static_cast<size_t>(part.rows));
      }
      qkv.resize(qkv.size() + static_cast<size_t>(kBeyond * width), NAN);
      std::vector<AttentionItem> items;
      const AttentionShape attention_shape{shape.layout(), running.records, running.processors,
                                           shape.block_size, running.wide};
      list_attention(step, attention_shape, items);
      CHECK(static_cast<int64_t>(items.size()) <=
            most_attention_items(attention_shape, static_cast<int32_t>(step.tokens.size())));
      const DeviceStep device(step, items);
      const Array<float> rows(qkv);
      const int64_t out_stride = wide + 4;
      const Array<float> out(
          std::vector<float>(static_cast<size_t>(out_stride * (device.rows + kBeyond)), -7));
      const int rope_stride = shape.head_dim + 2;
      std::vector<float> angles;
      for (const int position : device.positions.read()) {
        for (int i = 0; i < rope_stride; ++i)
          angles.push_back(std::cos(static_cast<float>(position % 1000) * 0.3f + static_cast<float>(i)));
      }
      const Array<float> rope(angles);
      const HeadRows heads{rows.get(), width, shape.layout()};
      const HeadStore store{kv->pages(layer), kOp + 1};
      Attention a{};
      a.norm = {q_norm.get(), k_norm.get(), rope.get(), rope_stride, 1e-6f, kOp};
      a.store_op = store.op;
      a.fused = running.heads == Running::kFused && attends && can_fuse_heads(step, attention_shape);
      fused_steps += a.fused;
      if (running.heads == Running::kStored) {
        launch_store(device.view(), heads, store, device.rows + kBeyond, nullptr);
      } else if (!a.fused) {
        launch_norm_store(device.view(), heads, a.norm, store, device.rows + kBeyond, nullptr);
      }
      if (!attends) continue;
      a.qkv = rows.get();
      a.qkv_stride = width;
      a.layout = shape.layout();
      a.pages = kv->pages(layer);
      a.scratch = attention_scratch(scratch.get(), running.records, shape.head_dim);
      a.out = out.get();
      a.out_stride = out_stride;
      a.wide = running.wide;
      a.op = kOp + 2;
      attend ? attend(device.view(), a) : launch_attention(device.view(), a, running.blocks, nullptr);
      const std::vector<float> got = out.read();
      first_bad = device.first_bad.read()[0];
      CHECK(!running.finite || first_bad == ~0ull);
      int row = 0;
      for (size_t i = 0; i < parts.size(); ++i) {
        const int end = step.sequences[i].context_length;
        for (int p = end - parts[i].rows; p < end; ++p, ++row) {
          std::copy_n(got.begin() + row * out_stride, wide,
                      outs[static_cast<size_t>(parts[i].sequence)].begin() + p * wide);
        }
      }
      for (size_t i = 0; i < got.size(); ++i) {
        if (static_cast<int64_t>(i) % out_stride >= wide ||
            static_cast<int64_t>(i) / out_stride >= device.rows)
          CHECK(got[i] == -7);
      }
    }
    const std::vector<uint8_t> left = scratch.read();  // the counters are zeros again
    CHECK(std::count(left.end() - 2 * running.records, left.end(), 0) == 2 * running.records);
    stored_ = read_pages(*kv, layer);
    return outs;
  }

  /// Largest difference to softmax(q k / sqrt d) v in double, of what pages hold and of queries as float16.
  double error(const std::vector<std::vector<float>>& outs, int from = 0) const {
    double worst = 0;
    const int dim = shape.head_dim;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const Sequence& s = sequences[i];
      for (int p = from; p < s.length; ++p) {
        for (int h = 0; h < shape.heads; ++h) {
          std::vector<double> q;
          const float scale = 1.44269504f / std::sqrt(static_cast<float>(dim));
          for (int d = 0; d < dim; ++d) {
            const float x = s.qkv[static_cast<size_t>(p * shape.width() + h * dim + d)] * scale;
            q.push_back(half_to_float(float_to_half(x)) * std::log(2.0));
          }
          std::vector<double> weights, sums(static_cast<size_t>(dim));
          double max = -INFINITY, sum = 0;
          for (int t = 0; t <= p; ++t) {
            double score = 0;
            for (int d = 0; d < dim; ++d)
              score += q[static_cast<size_t>(d)] * stored(i, t, h / shape.group(), 0)[d];
            weights.push_back(score);
            max = std::max(max, score);
          }
          for (int t = 0; t <= p; ++t) {
            const double w = std::exp(weights[static_cast<size_t>(t)] - max);
            sum += w;
            for (int d = 0; d < dim; ++d)
              sums[static_cast<size_t>(d)] += w * stored(i, t, h / shape.group(), 1)[d];
          }
          for (int d = 0; d < dim; ++d) {
            const double got = outs[i][static_cast<size_t>((p * shape.heads + h) * dim + d)];
            const double off = std::fabs(got - sums[static_cast<size_t>(d)] / sum);
            worst = std::max(worst, std::isfinite(off) ? off : INFINITY);
          }
        }
      }
    }
    return worst;
  }

  /// Largest difference of what pages hold to what was stored, relative to the largest number of the head.
  double store_error() const {
    double worst = 0;
    const int dim = shape.head_dim;
    for (size_t i = 0; i < sequences.size(); ++i) {
      for (int t = 0; t < sequences[i].length; ++t) {
        for (int h = 0; h < 2 * shape.kv_heads; ++h) {
          const float* x =
              &sequences[i].qkv[static_cast<size_t>(t * shape.width() + (shape.heads + h) * dim)];
          const float* y = stored(i, t, h % shape.kv_heads, h / shape.kv_heads);
          double largest = 0, off = 0;
          for (int d = 0; d < dim; ++d) {
            largest = std::max(largest, std::fabs(static_cast<double>(x[d])));
            off = std::max(off, std::fabs(static_cast<double>(x[d]) - y[d]));
          }
          worst = std::max(worst, std::isfinite(off) ? off / largest : INFINITY);
        }
      }
    }
    return worst;
  }

  Schedule whole() const {
    Schedule schedule(1);
    for (size_t i = 0; i < sequences.size(); ++i)
      schedule[0].push_back({static_cast<int>(i), sequences[i].length});
    return schedule;
  }
  /// All sequences at once, so many rows of each.
  Schedule chunks(int rows) const {
    Schedule schedule;
    for (int begin = 0;; begin += rows) {
      std::vector<Part> parts;
      for (size_t i = 0; i < sequences.size(); ++i) {
        if (begin < sequences[i].length)
          parts.push_back({static_cast<int>(i), std::min(rows, sequences[i].length - begin)});
      }
      if (parts.empty()) return schedule;
      schedule.push_back(parts);
    }
  }
  /// One sequence after another, so many rows at once.
  Schedule alone(int rows) const {
    Schedule schedule;
    for (size_t i = 0; i < sequences.size(); ++i) {
      for (int begin = 0; begin < sequences[i].length; begin += rows)
        schedule.push_back({{static_cast<int>(i), std::min(rows, sequences[i].length - begin)}});
    }
    return schedule;
  }
  /// The first sequence decodes, row by row, beside chunks of the others.
  Schedule mixed(int prompt, int rows) const {
    Schedule schedule{{{0, prompt}}};
    std::vector<int> done(sequences.size());
    done[0] = prompt;
    for (bool more = true; more;) {
      std::vector<Part> parts;
      for (size_t i = 0; i < sequences.size(); ++i) {
        const int n = std::min(i == 0 ? 1 : rows, sequences[i].length - done[i]);
        if (n > 0) parts.push_back({static_cast<int>(i), n});
        done[i] += n;
      }
      more = !parts.empty();
      if (more) schedule.push_back(parts);
    }
    return schedule;
  }

  const Shape shape;
  std::vector<Sequence> sequences;
  mutable int fused_steps = 0;             // of the last run
  mutable unsigned long long first_bad{};  // of its last step

  /// What pages hold after the last run.
  const std::vector<float>& pages() const { return stored_; }

 private:
  /// What pages hold, as float16 widened: [block][kv head][keys, values][slot][head_dim].
  std::vector<float> read_pages(const CudaKvCache& kv, int layer) const {
    std::vector<float> numbers;
    const size_t page = page_bytes(kv.shape()), layer_bytes = page * 2 * static_cast<size_t>(shape.kv_heads);
    const int dim = shape.head_dim;
    std::vector<std::byte> bytes(kv.all_layers_bytes());
    for (int block = 0; block < blocks_; ++block) {
      kv.read_block(block, bytes.data());
      for (int h = 0; h < 2 * shape.kv_heads; ++h) {
        const std::byte* from =
            bytes.data() + static_cast<size_t>(layer) * layer_bytes + static_cast<size_t>(h) * page;
        for (int slot = 0; slot < shape.block_size; ++slot) {
          for (int d = 0; d < dim; ++d) {
            if (shape.type == KvType::kF16) {
              uint16_t half;
              std::memcpy(&half, from + slot * 2 * dim + place_chunk(slot, d / 8, dim) * 16 + d % 8 * 2, 2);
              numbers.push_back(half_to_float(half));
            } else {
              int8_t integer;
              float scale;
              std::memcpy(&integer, from + slot * dim + d, 1);
              std::memcpy(&scale, from + shape.block_size * dim + slot * 4, 4);
              numbers.push_back(half_to_float(float_to_half(static_cast<float>(integer) * scale)));
            }
          }
        }
      }
    }
    return numbers;
  }
  const float* stored(size_t sequence, int position, int kv_head, int which) const {
    const int block = sequences[sequence].table[static_cast<size_t>(position / shape.block_size)];
    const int page = (block * shape.kv_heads + kv_head) * 2 + which;
    return &stored_[static_cast<size_t>((page * shape.block_size + position % shape.block_size) *
                                        shape.head_dim)];
  }

  int blocks_;
  mutable std::vector<float> stored_;
};

const Shape kShapes[] = {
    {4, 1, 128, 16, KvType::kF16}, {4, 2, 64, 32, KvType::kF16}, {2, 2, 128, 32, KvType::kQ8},
    {8, 1, 64, 16, KvType::kQ8},   {2, 1, 80, 16, KvType::kF16}, {4, 1, 80, 32, KvType::kQ8},
    {3, 1, 64, 48, KvType::kF16},  {2, 1, 256, 16, KvType::kQ8}, {20, 1, 16, 16, KvType::kF16},
};

bool same(const std::vector<std::vector<float>>& a, const std::vector<std::vector<float>>& b) {
  return a == b;
}

}  // namespace

TEST(matches_double_with_scattered_blocks) {
  for (const Shape& shape : kShapes) {
    const Bench bench(shape, {1, 50, 16, 17, 129, 260}, 7);
    const auto outs = bench.run(bench.whole());
    const double error = bench.error(outs), store_error = bench.store_error();
    std::printf("head_dim %d, group %d, %s: %.2e, stored %.2e\n", shape.head_dim, shape.group(),
                shape.type == KvType::kF16 ? "f16" : "q8", error, store_error);
    CHECK(error < 2e-3);  // weights are rounded to 11 bits
    CHECK(store_error < (shape.type == KvType::kF16 ? 0x1p-11 : 0.5 / 124 + 0x1p-11));
  }
}

TEST(the_same_bits_whole_in_chunks_alone_and_split) {
  for (const Shape& shape : kShapes) {
    const Bench bench(shape, {300, 33, 140}, 8);
    const auto first = bench.run(bench.whole());
    CHECK(same(first, bench.run(bench.whole(), {1000, 7})));
    CHECK(same(first, bench.run(bench.whole(), {4, 3, 1 << 14, false})));
    CHECK(same(first, bench.run(bench.alone(64))));
    CHECK(same(first, bench.run(bench.chunks(19), {1000, 5})));
    CHECK(same(first, bench.run(bench.mixed(200, 6), {12, 2})));
  }
}

TEST(the_same_bits_token_by_token) {
  for (const Shape& shape : {kShapes[0], kShapes[3], kShapes[4]}) {
    const Bench bench(shape, {150, 131}, 9);
    const auto first = bench.run(bench.whole());
    CHECK(same(first, bench.run(bench.chunks(1), {1000, 4, 1 << 14, false})));
    CHECK(same(first, bench.run(bench.alone(1), {1, 1})));
  }
}

TEST(fused_heads_change_no_bit) {
  for (const Shape& shape : kShapes) {
    const Bench bench(shape, {150, 131, 40}, 18);
    for (const int rows : {1, 3}) {
      Running running{1000, 4, 1 << 14, false, Running::kNormed};
      const Schedule schedule = bench.chunks(rows);
      const auto separate = bench.run(schedule, running);
      const auto pages = bench.pages();
      CHECK(bench.fused_steps == 0);
      running.heads = Running::kFused;
      for (const Running& fused : {running, Running{1, 2, 1 << 14, false, Running::kFused}}) {
        CHECK(same(separate, bench.run(schedule, fused)));
        CHECK(std::memcmp(bench.pages().data(), pages.data(), pages.size() * sizeof(float)) == 0);
        CHECK(bench.fused_steps == (shape.group() * rows > 16 ? 0 : static_cast<int>(schedule.size())));
      }
    }
  }
}

TEST(fused_heads_name_the_same_bad_values) {
  for (const KvType type : {KvType::kF16, KvType::kQ8}) {
    for (const int head : {1, 4, 7}) {  // a query, a key, a value
      for (const float value : {NAN, 1e38f, 65600.0f, 65504.0f}) {
        Bench bench({4, 2, 64, 16, type}, {140, 20}, 21);
        bench.sequences[0].qkv[static_cast<size_t>(139 * bench.shape.width() + head * 64 + 41)] = value;
        const Schedule schedule{{{0, 137}, {1, 18}}, {{1, 2}, {0, 3}}};
        Running running{1000, 4, 1 << 14, false, Running::kNormed, false};
        bench.run(schedule, running);
        const auto expected = bench.first_bad;
        CHECK(expected == ~0ull || (expected & 0xffffffff) == 4);
        running.heads = Running::kFused;
        bench.run(schedule, running);
        CHECK(bench.fused_steps == 1);
        CHECK(bench.first_bad == expected);
      }
    }
  }
}

TEST(fused_heads_where_spans_grow) {
  const Bench bench({2, 1, 16, 16, KvType::kF16}, {4110}, 19);
  const Schedule prompt{{{0, 4090}}};
  const auto schedule = [&](int rows) {
    Schedule s = prompt;
    for (int at = 4090; at < 4110; at += rows) s.push_back({{0, rows}});
    return s;
  };
  const auto run = [&](int rows, decltype(Running::heads) heads) {
    const auto outs = bench.run(schedule(rows), {1000, 4, 1 << 14, false, heads}, 4090);
    return std::vector<float>(outs[0].begin() + 4090 * 2 * 16, outs[0].end());
  };
  const auto separate = run(1, Running::kNormed);
  CHECK(separate == run(1, Running::kFused));
  CHECK(bench.fused_steps == 20);
  CHECK(separate == run(4, Running::kFused));
  CHECK(bench.fused_steps == 4);  // one step has rows with spans of both lengths
}

TEST(sequences_that_read_what_others_write_are_not_fused) {
  const QkvLayout layout{4, 2, 64};
  const auto stored = [&](const Step& step) {
    const AttentionShape shape{layout, 1024, 1, 16, false};
    std::vector<AttentionItem> items;
    list_attention(step, shape, items);
    CHECK(items.size() == step.sequences.size() * 2);
    std::vector<int32_t> found(step.sequences.size());
    for (const AttentionItem& item : items) found[static_cast<size_t>(item.first_row)] = item.stored;
    return std::pair{can_fuse_heads(step, shape), found};
  };
  const auto expected = [](bool fused, std::vector<int32_t> tokens) { return std::pair{fused, tokens}; };
  Step step;
  step.tokens.resize(2);
  step.sequences = {{1, 20, {7, 3}}, {1, 40, {7, 2, 5}}};  // a common prefix that nobody writes
  CHECK(stored(step) == expected(true, {19, 39}));
  step.sequences[1].block_table[1] = 3;  // written by the other
  CHECK(stored(step) == expected(false, {0, 0}));
  step.sequences[1].block_table = {7, 2, 5, 3};  // beyond its context
  CHECK(stored(step) == expected(true, {19, 39}));
  step.sequences = {{1, 20, {7, 3}}, {1, 24, {7, 3}}};  // both write it
  CHECK(stored(step) == expected(false, {0, 0}));
  step.sequences.pop_back();
  step.sequences[0].row_count = 5;
  step.tokens.resize(5);
  CHECK(!can_fuse_heads(step, {layout, 1024, 1, 16, false}));
}

#ifdef NIWAKI_CUDA_EMULATED
TEST(the_same_bits_in_every_order_of_threads) {
  for (const Shape& shape : {kShapes[0], kShapes[2], kShapes[4]}) {
    const Bench bench(shape, {140}, 20);
    const Schedule schedule{{{0, 137}}, {{0, 1}}, {{0, 2}}};
    std::vector<std::vector<float>> first;
    for (const auto async : {emulated::Async::kLate, emulated::Async::kEarly}) {
      emulated::set_async(async);
      for (const auto order :
           {emulated::Order::kForward, emulated::Order::kReverse, emulated::Order::kShuffled}) {
        emulated::set_order(order, 7);
        for (const Running& running : {Running{1000, 4, 1 << 14, false, Running::kFused},
                                       Running{1, 1, 1 << 14, true, Running::kNormed}}) {
          const auto outs = bench.run(schedule, running);
          if (first.empty()) first = outs;
          CHECK(same(first, outs));
        }
      }
    }
    emulated::set_async(emulated::Async::kLate);
    emulated::set_order(emulated::Order::kForward);
  }
}
#endif

TEST(long_contexts_have_longer_spans) {
  for (const Shape& shape : {Shape{4, 1, 64, 32, KvType::kF16}, Shape{2, 1, 16, 16, KvType::kQ8}}) {
    const int begin = 4080, length = 4120;
    CHECK(span_tokens(4095) == 128 && span_tokens(4096) == 256 && span_tokens(8191) == 256 &&
          span_tokens(8192) == 512);
    const Bench bench(shape, {length}, 10);
    const auto schedule = [&](int rows) {
      Schedule s{{{0, begin}}};
      for (int at = begin; at < length; at += rows) s.push_back({{0, std::min(rows, length - at)}});
      return s;
    };
    const auto tail = [&](const std::vector<std::vector<float>>& outs) {
      return std::vector<float>(outs[0].begin() + begin * shape.heads * shape.head_dim, outs[0].end());
    };
    const auto outs = bench.run(schedule(length), {1, 1}, begin);
    CHECK(bench.error(outs, begin) < 2e-3);
    for (const Running& running : {Running{1000, 5}, Running{1, 1}}) {
      CHECK(tail(bench.run(schedule(7), running, begin)) == tail(outs));
      CHECK(tail(bench.run(schedule(40), running, begin)) == tail(outs));
    }
  }
}

TEST(very_unequal_scores_stay_exact) {
  Bench bench({2, 1, 64, 16, KvType::kF16}, {300}, 11);
  for (int p = 0; p < 300; ++p) {
    for (int i = 0; i < 128; ++i)
      bench.sequences[0].qkv[static_cast<size_t>(p * bench.shape.width() + i)] *= 50;
  }
  const auto outs = bench.run(bench.whole());
  CHECK(bench.error(outs) < 3e-3);
  CHECK(same(outs, bench.run(bench.chunks(1), {1000, 3})));
}

namespace {

/// A warp for each group of a row.
__global__ void quantize_rows(const float* x, int64_t stride, int groups, Quantized out) {
  const int row = static_cast<int>(blockIdx.x) / groups, group = static_cast<int>(blockIdx.x) % groups;
  const float* at = x + row * stride + group * kGroup;
  float values[4];
  for (int t = 0; t < 4; ++t) values[t] = at[group_column(static_cast<int>(threadIdx.x), t)];
  quantize_lanes(out, row, group, values);
}

/// Memory for quantized rows, zeros at first.
struct QuantizedRows {
  QuantizedRows(QuantizedLayout layout, int rows, int columns)
      : size(layout, rows, columns), bytes(std::vector<uint8_t>(size.data + size.scales + size.sums)) {
    uint8_t* data = bytes.get();
    view = {layout, rows, data, reinterpret_cast<float*>(data + size.data),
            reinterpret_cast<int32_t*>(data + size.data + size.scales)};
  }
  QuantizedBytes size;
  Array<uint8_t> bytes;
  Quantized view;
};

}  // namespace

TEST(results_are_quantized_for_the_next_operation) {
  for (const KvType type : {KvType::kF16, KvType::kQ8}) {
    const Shape shape{4, 2, 128, 16, type};
    Bench bench(shape, {150, 20}, 16);
    for (const QuantizedLayout layout :
         {QuantizedLayout::kBits1, QuantizedLayout::kBits2, QuantizedLayout::kHalves}) {
      const Running split{1000}, whole{4}, fused{4, 3, 1 << 14, false, Running::kFused},
          fused_and_split{1000, 3, 1 << 14, false, Running::kFused};
      for (const auto& [rows, running] :
           {std::pair{1, split}, {150, whole}, {1, fused}, {2, fused_and_split}}) {
        const int columns = 4 * 128, room = (rows + 7) / 8 * 8;
        const QuantizedRows with(layout, room, columns), after(layout, room, columns),
            only(layout, room, columns);
        bench.run({{{0, 150 - rows}}, {{0, rows}}}, running, 150 - rows,
                  [&, rows = rows](const StepView& step, Attention a) {
                    a.quantize = true;
                    a.quantized = with.view;
                    launch_attention(step, a, 3, nullptr);
                    launch(quantize_rows, {dim3(static_cast<unsigned>(rows * 4)), dim3(32)}, nullptr, a.out,
                           a.out_stride, 4, after.view);
                    a.out = nullptr;
                    a.quantized = only.view;
                    launch_attention(step, a, 3, nullptr);
                  });
        CHECK(with.bytes.read() == after.bytes.read());
        CHECK(only.bytes.read() == after.bytes.read());
      }
    }
  }
}

TEST(results_that_are_not_finite_are_named_where_they_are_quantized) {
  Bench bench({4, 1, 128, 16, KvType::kF16}, {40}, 17);
  const QuantizedRows quantized(QuantizedLayout::kBits1, 40, 512);
  unsigned long long found = 0;
  bench.run({{{0, 40}}}, {}, 0, [&](const StepView& step, Attention a) {
    const std::vector<unsigned long long> none{~0ull};
    const std::vector<uint16_t> infinite(16 * 128, 0x7c00);  // the values of block 1, from position 16 on
    check(cudaMemcpy(a.pages.values(bench.sequences[0].table[1], 0), infinite.data(), infinite.size() * 2,
                     cudaMemcpyHostToDevice),
          "a test's page");
    a.quantize = true;
    a.quantized = quantized.view;
    a.quantize_op = kOp + 3;
    launch_attention(step, a, 3, nullptr);
    check(cudaDeviceSynchronize(), "a test's kernels");
    check(cudaMemcpy(&found, step.first_bad, 8, cudaMemcpyDeviceToHost), "a test's result");
    check(cudaMemcpy(step.first_bad, none.data(), 8, cudaMemcpyHostToDevice), "a test's result");
  });
  // Weights of later tokens are zeros, which infinite values make NaN: rows from the first of the chunk on.
  CHECK(found >> 32 == kOp + 3 && (found & 0xffffffff) <= 16);
}

TEST(records_run_out) {
  const Bench bench({4, 2, 64, 16, KvType::kF16}, {300, 290}, 12);
  const auto outs = bench.run(bench.chunks(1), {1000, 4, 1 << 14});
  CHECK(same(outs, bench.run(bench.chunks(1), {1000, 4, 24})));  // of one sequence
  CHECK(same(outs, bench.run(bench.chunks(1), {1000, 4, 2})));
}

namespace {

/// Rows with norms and angles in device memory.
struct HeadsBench {
  HeadsBench(const Shape& shape, int rows, uint64_t seed) : shape(shape), random(seed) {
    step.tokens.resize(static_cast<size_t>(rows));
    const int blocks = rows / shape.block_size + 1;
    std::vector<int32_t> table(static_cast<size_t>(blocks));
    std::iota(table.rbegin(), table.rend(), 1);
    step.sequences = {{rows, rows, table}};
    qkv = random.normals(static_cast<size_t>((rows + kBeyond) * shape.width()));
    q_norm = random.normals(static_cast<size_t>(shape.head_dim));
    k_norm = random.normals(static_cast<size_t>(shape.head_dim));
    kv = {2, shape.kv_heads, shape.head_dim, shape.block_size, blocks + 1, shape.type};
  }

  struct Result {
    std::vector<float> qkv, rope;
    std::vector<std::byte> pages;
    unsigned long long first_bad;
  };
  Result run(bool fused) const {
    const Rope rope(spec(), "test");
    const DeviceStep device(step, {});
    const StepView view = device.view();
    const int launch_rows = device.rows + kBeyond;
    const Array<float> rows(qkv), q(q_norm), k(k_norm);
    const Array<double> frequencies(rope.frequencies());
    const int64_t stride = shape.head_dim + 2;
    const Array<float> table(std::vector<float>(static_cast<size_t>(launch_rows * stride), -7));
    CudaKvCache cache(kv);
    launch_rope_table(view, {frequencies.get(), rope.factor(), shape.head_dim, table.get(), stride},
                      launch_rows, nullptr);
    const HeadRows heads{rows.get(), shape.width(), shape.layout()};
    const HeadNorm norm{q.get(), k.get(), table.get(), stride, kEps, kOp};
    const HeadStore store{cache.pages(1), kOp + 1};
    if (fused) {
      launch_norm_store(view, heads, norm, store, launch_rows, nullptr);
    } else {
      launch_norm(view, heads, norm, launch_rows, nullptr);
      launch_store(view, heads, store, launch_rows, nullptr);
    }
    Result result{rows.read(), table.read(), {}, device.first_bad.read()[0]};
    result.pages.resize(cache.all_layers_bytes() * static_cast<size_t>(kv.blocks));
    for (int b = 0; b < kv.blocks; ++b)
      cache.read_block(b, result.pages.data() + static_cast<size_t>(b) * cache.all_layers_bytes());
    return result;
  }

  RopeSpec spec() const { return {shape.head_dim, 1e6, RopeScaling::kYarn, 4, 32768, 32, 1, 1.1386}; }

  static constexpr float kEps = 1e-6f;
  Shape shape;
  Random random;
  Step step;
  std::vector<float> qkv, q_norm, k_norm;
  KvShape kv;
};

unsigned long long bad(int op, int row) {
  return static_cast<unsigned long long>(op) << 32 | static_cast<unsigned long long>(row);
}

}  // namespace

TEST(heads_are_normed_and_turned) {
  for (const Shape& shape : kShapes) {
    const HeadsBench bench(shape, 37, 13);
    const auto result = bench.run(false), fused = bench.run(true);
    CHECK(result.first_bad == ~0ull && fused.first_bad == ~0ull);
    CHECK(result.pages == fused.pages);
    const Rope rope(bench.spec(), "test");
    const int dim = shape.head_dim, half = dim / 2;
    double worst = 0, worst_angle = 0;
    for (int row = 0; row < 37 + kBeyond; ++row) {
      std::vector<float> angles(static_cast<size_t>(dim));
      rope.row(row, angles.data());
      for (int i = 0; i < dim && row < 37; ++i) {
        worst_angle = std::max(worst_angle, std::fabs(static_cast<double>(angles[static_cast<size_t>(i)]) -
                                                      result.rope[static_cast<size_t>(row * (dim + 2) + i)]));
      }
      for (int h = 0; h < shape.heads + 2 * shape.kv_heads; ++h) {
        const size_t at = static_cast<size_t>(row * shape.width() + h * dim);
        const float* x = &bench.qkv[at];
        if (row >= 37 || h >= shape.heads + shape.kv_heads) {
          CHECK(std::equal(x, x + dim, &result.qkv[at]) && std::equal(x, x + dim, &fused.qkv[at]));
          continue;
        }
        const std::vector<float>& weight = h < shape.heads ? bench.q_norm : bench.k_norm;
        double squares = 0;
        for (int d = 0; d < dim; ++d) squares += static_cast<double>(x[d]) * x[d];
        const double inverse = 1 / std::sqrt(squares / dim + HeadsBench::kEps);
        for (int d = 0; d < half; ++d) {
          const auto u = static_cast<size_t>(d), v = static_cast<size_t>(half + d);
          const double low = x[u] * inverse * weight[u], high = x[v] * inverse * weight[v];
          worst = std::max(worst, std::fabs(low * angles[u] - high * angles[v] - result.qkv[at + u]));
          worst = std::max(worst, std::fabs(high * angles[u] + low * angles[v] - result.qkv[at + v]));
        }
        if (h < shape.heads) CHECK(std::equal(&result.qkv[at], &result.qkv[at] + dim, &fused.qkv[at]));
      }
    }
    CHECK(worst < 3e-6);
    CHECK(worst_angle < 1.5e-7);
  }
}

TEST(bad_values_are_named) {
  for (const KvType type : {KvType::kF16, KvType::kQ8}) {
    const Shape shape{4, 2, 64, 16, type};
    const auto found = [&](int row, int head, float value) {
      HeadsBench bench(shape, 20, 14);
      bench.qkv[static_cast<size_t>(row * shape.width() + head * 64 + 41)] = value;
      const auto separate = bench.run(false), fused = bench.run(true);
      CHECK(separate.first_bad == fused.first_bad);
      return fused.first_bad;
    };
    for (const float value : {NAN, INFINITY, -INFINITY}) {
      CHECK(found(3, 1, value) == bad(kOp, 3));
      CHECK(found(4, 5, value) == bad(kOp, 4));
      CHECK(found(19, 6, value) == bad(kOp + 1, 19));
      CHECK(found(20, 6, value) == ~0ull);  // no row of the step
    }
    CHECK(found(7, 7, 65504) == ~0ull);
    CHECK(found(7, 7, 65600) == bad(kOp + 1, 7) && found(7, 7, -1e9f) == bad(kOp + 1, 7));
    CHECK(found(7, 5, 1e9f) == ~0ull);  // keys are normed
  }
}

TEST(queries_beyond_float16_are_named) {
  const Shape shape{4, 1, 64, 16, KvType::kF16};
  const Bench bench(shape, {40}, 15);
  const auto kv = bench.poisoned(1);
  const std::vector<std::byte> zeros(kv->all_layers_bytes());
  for (int b = 0; b < kv->shape().blocks; ++b) kv->write_block(b, zeros.data());
  for (const float value : {3.6e5f, 3.7e5f, NAN, -INFINITY}) {  // times log2(e) / 8
    Step step;
    step.tokens.resize(40);
    step.sequences = {{40, 40, bench.sequences[0].table}};
    std::vector<AttentionItem> items;
    list_attention(step, {shape.layout(), 1024, 4, 16, true}, items);
    const DeviceStep device(step, items);
    std::vector<float> qkv = bench.sequences[0].qkv;
    qkv[static_cast<size_t>(31 * shape.width() + 3 * 64 + 9)] = value;
    const Array<float> rows(qkv), out(std::vector<float>(40 * 256));
    const Array<uint8_t> scratch(std::vector<uint8_t>(attention_scratch_bytes(1024, 64)));
    Attention a{};
    a.qkv = rows.get();
    a.qkv_stride = shape.width();
    a.layout = shape.layout();
    a.pages = kv->pages(0);
    a.scratch = attention_scratch(scratch.get(), 1024, 64);
    a.out = out.get();
    a.out_stride = 256;
    a.wide = true;
    a.op = kOp + 2;
    launch_attention(device.view(), a, 2, nullptr);
    CHECK(device.first_bad.read()[0] == (value == 3.6e5f ? ~0ull : bad(kOp + 2, 31)));
  }
}

TEST(blocks_are_copied_read_and_written) {
  CudaKvCache kv({3, 2, 64, 16, 5, KvType::kQ8});
  CHECK(kv.all_layers_bytes() == 3 * 2 * 2 * 16 * (64 + 4) && kv.bytes() == 5 * kv.all_layers_bytes());
  std::vector<std::byte> block(kv.all_layers_bytes()), got(block.size());
  for (size_t i = 0; i < block.size(); ++i) block[i] = static_cast<std::byte>(i * 7 + i / 256);
  kv.write_block(1, block.data());
  kv.copy_block(1, 4);
  kv.read_block(4, got.data());
  CHECK(got == block);
  kv.read_block(3, got.data());
  CHECK(std::count(got.begin(), got.end(), std::byte{0}) == static_cast<std::ptrdiff_t>(got.size()));
  const auto code = [](auto&& f) {
    try {
      f();
    } catch (const Error& e) {
      return static_cast<int>(e.code);
    }
    return -1;
  };
  CHECK(code([&] { kv.copy_block(1, 5); }) == static_cast<int>(ErrorCode::kInvalidArgument));
  CHECK(code([&] { kv.read_block(-1, got.data()); }) == static_cast<int>(ErrorCode::kInvalidArgument));
  CHECK(code([] {
          CudaKvCache({1, 1, 64, 16, 1, KvType::kF32});
        }) == static_cast<int>(ErrorCode::kUnsupported));
}

TEST_MAIN()
