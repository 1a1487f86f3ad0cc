#pragma once
// Where running sums of weights end, in a list in shared memory and in a whole row that no list holds.
#include "cuda/sampling_row.h"

namespace niwaki::cuda {

/// Words that can be sorted in shared memory.
constexpr int kCandidates = kSlice;

/// Shared memory of a block that chooses a token.
struct ChooseRoom {
  Ranked list[kCandidates];
  SliceRoom slice;  // its values are also the weights of the list
};

/// What ends a running sum: that it is over its target, or that it reaches it.
enum class Ends { kOver, kReached };

__device__ inline bool ends(double sum, Ends by, double target) {
  return by == Ends::kOver ? sum > target : sum >= target;
}

/// The first of `count` weights in shared memory that ends the sum from `before` on, for kOver one that is
/// not 0; `count` if none does.
__device__ inline int32_t crossing(const float* weights, int32_t count, double before, Ends by, double target,
                                   const SamplingOps& ops) {
  const int32_t begin = static_cast<int32_t>(threadIdx.x) * kEach;
  double sum = 0;
  for (int32_t i = begin; i < min(begin + kEach, count); ++i) sum += static_cast<double>(weights[i]);
  sum = before + ops.sum_before(sum);
  int32_t found = count;
  for (int32_t i = begin; i < min(begin + kEach, count) && found == count; ++i) {
    sum += static_cast<double>(weights[i]);
    if (ends(sum, by, target) && (by == Ends::kReached || weights[i] > 0)) found = i;
  }
  return ops.lowest(found);
}

/// The last of `count` weights in shared memory that is not 0.
__device__ inline int32_t last_weight(const float* weights, int32_t count, const SamplingOps& ops) {
  int32_t found = 0;
  for (int32_t i = threadIdx.x; i < count; i += kSamplingThreads) {
    if (weights[i] > 0) found = i;
  }
  return ops.highest(found);
}

/// Draws by `share` of [0, 1) of the sum of `count` weights in shared memory.
__device__ inline int32_t draw_of(const float* weights, int32_t count, double share, const SamplingOps& ops) {
  double sum = 0;
  for (int32_t i = threadIdx.x; i < count; i += kSamplingThreads) sum += static_cast<double>(weights[i]);
  const int32_t found = crossing(weights, count, 0, Ends::kOver, share * ops.sum(sum), ops);
  return found < count ? found : last_weight(weights, count, ops);
}

/// One side of a row, for the threads of a block that have it to themselves.
struct RowSearch {
  const SampleRow& row;
  LogitRow from;
  Softmax softmax;
  Ranked best, floor;  // only words from `floor` to `best` count
  bool adjusts;
  ChooseRoom& room;
  const SamplingOps& ops;

  /// Calls f(word, value) for every token that counts.
  template <class F>
  __device__ void each(F f) const {
    for (int32_t begin = 0; begin < from.vocabulary; begin += kSlice) {
      float x[kEach];
      from.load(begin, x);
      if (adjusts) from.adjust(row, begin, room.slice, x);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const Ranked word = ranked(x[i], LogitRow::token(begin, i));
        if (x[i] > -INFINITY && word >= floor) f(word, x[i]);
      }
    }
  }

  __device__ double weights() const {
    double sum = 0;
    each([&](Ranked, float x) { sum += static_cast<double>(softmax.weight(x)); });
    return ops.sum(sum);
  }

  /// Lists the words of [low, high), which must fit, in descending order; returns how many.
  __device__ int32_t list(Ranked low, Ranked high) const {
    __shared__ int32_t listed;
    __syncthreads();
    if (threadIdx.x == 0) listed = 0;
    __syncthreads();
    each([&](Ranked word, float) {
      if (word >= low && word < high) room.list[atomicAdd(&listed, 1)] = word;
    });
    __syncthreads();
    const int32_t count = listed;
    SamplingOps::sort_descending(room.list, count);
    return count;
  }

  /// What find() sums.
  enum class Measure { kCount, kWeight };
  __device__ float measured(Measure measure, float x) const {
    return measure == Measure::kCount ? 1.0f : softmax.weight(x);
  }

  /// The first word, in descending order, that ends the sum of measures; the last that adds to it if none
  /// does. Eight thresholds are tried at a time, until few words are left between two of them.
  __device__ Ranked find(Measure measure, Ends by, double target) const {
    constexpr int kTried = 8;
    Ranked low = floor, high = best + 1;
    double above = 0;  // the sum from `high` on
    int32_t between;   // words of [low, high)
    do {
      const Ranked step = (high - low + kTried - 1) / kTried;
      const auto tried = [&](int j) { return min(low + static_cast<Ranked>(j) * step, high); };
      double sums[kTried] = {};     // from the threshold on
      int32_t counts[kTried] = {};  // from there to `high`
      each([&](Ranked word, float x) {
        const auto m = static_cast<double>(measured(measure, x));
#pragma unroll
        for (int j = 0; j < kTried; ++j) {
          if (word < tried(j)) continue;
          sums[j] += m;
          counts[j] += word < high;
        }
      });
#pragma unroll
      for (int j = 0; j < kTried; ++j) {
        sums[j] = ops.sum(sums[j]);
        counts[j] = ops.sum(counts[j]);
      }
      if (!ends(sums[0], by, target)) {
        by = Ends::kReached;
        target = sums[0];
      }
      // The highest threshold at which the sum has ended, and the one after it. A target of 0 is reached
      // without a word.
      Ranked next_low = low, next_high = high;
      between = counts[0];
#pragma unroll
      for (int j = 1; j < kTried; ++j) {
        if (counts[j] > 0 && ends(sums[j], by, target)) {
          next_low = tried(j);
          between = counts[j];
        } else if (next_high == high) {
          next_high = tried(j);
          above = sums[j];
          between -= counts[j];
        }
      }
      low = next_low;
      high = next_high;
    } while (between > kCandidates);

    const int32_t count = list(low, high);
    float* measures = room.slice.values;
    for (int32_t i = threadIdx.x; i < count; i += kSamplingThreads)
      measures[i] = measured(measure, value_of(room.list[i]));
    __syncthreads();
    int32_t found = crossing(measures, count, above, by, target, ops);
    if (found == count) found = last_weight(measures, count, ops);
    return room.list[found];
  }
};

}  // namespace niwaki::cuda
