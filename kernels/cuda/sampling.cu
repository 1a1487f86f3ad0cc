#include <algorithm>
#include <cmath>
#include <cstring>

#include "cuda/sampling.h"
#include "cuda/sampling_search.h"
#include "niwaki/error.h"

namespace niwaki::cuda {

// All samples greedy: scan_kernel<false> alone, whose last block of each row writes the token. Else:
//
//   scan    blocks [slices, samples]   finds the row's largest value and, of each group of 256 logits, that
//   of the group;
//                                      the last block takes the r-th largest of those as a threshold, which
//                                      at least r logits reach and few more
//   weigh   blocks [slices, samples]   sums of weights by slice; logits from the threshold on become the
//   row's candidates choose  blocks [samples]           sorts the candidates in shared memory, filters and
//   draws
//
// A row has two sides: its logits as they are, for log-probabilities, and adjusted, for the draw. Where
// candidates are too many or too few, `choose` searches the whole row instead (RowSearch), which is slower
// and gives the same.

namespace {

enum Side : int { kRaw, kAdjusted };

constexpr int kWarps = kSamplingThreads / 32;
constexpr int kMaxSlices = CudaSampler::kMaxVocabulary / kSlice;
static_assert(kMaxSlices <= kSamplingThreads);  // a thread for each

/// What `scan` finds in a row.
struct RowState {
  SampleStatus status;
  Ranked best[2];         // by side
  uint32_t threshold[2];  // of the upper halves of Ranked; 0: all tokens are candidates
};

}  // namespace

/// Device memory, by sample.
struct SamplingScratch {
  int32_t vocabulary, slices;
  uint32_t* arrived;  // blocks of `scan` that are done; 0 between launches
  RowState* states;
  Ranked* slice_best;        // [side][slice]
  uint32_t* group_best;      // [side][slice][warp], upper halves
  double* slice_sums;        // [side][slice]
  int32_t* candidate_count;  // [side]; may be more than there is room for
  Ranked* candidates;        // [side][kCandidates]

  __device__ size_t side(int32_t sample, int which) const { return static_cast<size_t>(sample) * 2 + which; }
};

namespace {

__device__ bool draws(const SampleRow& row) {
  return row.temperature > 0;
}

/// How many candidates the row needs at least, as far as is known before its weights are; 0: none.
__device__ int32_t wanted(const SampleRow& row, int side, int32_t vocabulary) {
  if (side == kRaw) return max(row.logprobs, 0);
  if (!draws(row) || !row.is_limited(vocabulary)) return 0;
  return row.top_k > 0 && row.top_k < vocabulary ? row.top_k : vocabulary;
}

/// Of the largest values of groups, upper halves of Ranked: what at least `rank` of them reach, rounded down.
__device__ uint32_t threshold_of(const uint32_t* group_best, int groups, int rank, const SamplingOps& ops) {
  constexpr int kHeld = kMaxSlices * kWarps / kSamplingThreads;
  uint32_t held[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int group = i * kSamplingThreads + static_cast<int>(threadIdx.x);
    held[i] = group < groups ? __ldcg(group_best + group) : 0;
  }
  uint32_t threshold = 0;
  for (int bit = 31; bit >= 14; --bit) {
    const uint32_t higher = threshold | 1u << bit;
    int32_t count = 0;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) count += held[i] >= higher;
    if (ops.sum(count) >= rank) threshold = higher;
  }
  return threshold;
}

/// What the host reads of a sample; with the first of them, what it reads of the step.
__device__ void publish(const SampleTable& table, int sample, const SampleOutput& output,
                        const StepView& step) {
  table.outputs[sample] = output;
  if (sample == 0) *table.first_bad = __ldcg(step.first_bad);
}

template <bool kAny>
__global__ void __launch_bounds__(kSamplingThreads)
    scan_kernel(const SampleTable* table, StepView step, const float* logits, int64_t row_stride,
                SamplingScratch scratch, int32_t* next_tokens) {
  __shared__ SliceRoom room;
  __shared__ SamplingOps::Scratch ops_scratch;
  __shared__ bool last;
  const SamplingOps ops{ops_scratch};
  wait_for_predecessor();
  start_successor();
  const int slice = blockIdx.x, sample = blockIdx.y;
  if (sample >= table->count) return;
  const SampleRow& row = (*table)[sample];
  const LogitRow from{logits + row.output * row_stride, scratch.vocabulary};
  const int32_t begin = slice * kSlice;

  float x[kEach];
  from.load(begin, x);
  bool finite = true;
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    finite &= LogitRow::token(begin, i) >= from.vocabulary || fabsf(x[i]) <= FLT_MAX;

  const auto note = [&](int side, bool valid) {
    Ranked best = valid ? 0 : ~Ranked{0};
    if (valid) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const Ranked word = ranked(x[i], LogitRow::token(begin, i));
        best = word > best ? word : best;
      }
    }
    if (kAny) {
      const auto upper = static_cast<uint32_t>(best >> 32);
      const uint32_t of_warp = __reduce_max_sync(~0u, upper);
      if (threadIdx.x % 32 == 0) {
        scratch
            .group_best[(scratch.side(sample, side) * scratch.slices + slice) * kWarps + threadIdx.x / 32] =
            of_warp;
      }
    }
    best = ops.highest(best);
    if (threadIdx.x == 0) scratch.slice_best[scratch.side(sample, side) * scratch.slices + slice] = best;
  };
  note(kRaw, finite);
  const bool adjusts = kAny && row.adjusts();
  if (adjusts) {
    from.adjust(row, begin, room, x);
    note(kAdjusted, true);
  }

  // The last block of the row goes on with what all have found.
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(scratch.arrived + sample, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  const auto best_of = [&](int side) {
    const Ranked* found = scratch.slice_best + scratch.side(sample, side) * scratch.slices;
    return ops.highest(static_cast<int>(threadIdx.x) < scratch.slices ? __ldcg(found + threadIdx.x)
                                                                      : Ranked{0});
  };
  RowState state{SampleStatus::kChosen, {}, {}};
  state.best[kRaw] = best_of(kRaw);
  state.best[kAdjusted] = adjusts ? best_of(kAdjusted) : state.best[kRaw];
  if (state.best[kRaw] == ~Ranked{0}) {
    state.status = SampleStatus::kNotFinite;
  } else if (value_of(state.best[kAdjusted]) == -INFINITY) {
    state.status = SampleStatus::kAllBanned;
  }
  if (kAny && state.status == SampleStatus::kChosen) {
    for (int side = kRaw; side <= kAdjusted; ++side) {
      const int32_t want = wanted(row, side, from.vocabulary);
      if (want == 0 || from.vocabulary <= kCandidates) continue;
      // Of so many random values, four fifths of the groups have one and a half times as many.
      const int full_groups = from.vocabulary / (kSlice / kWarps);
      const uint32_t* found =
          scratch.group_best + scratch.side(sample, adjusts ? side : kRaw) * scratch.slices * kWarps;
      state.threshold[side] =
          threshold_of(found, scratch.slices * kWarps, min(want, full_groups * 4 / 5), ops);
    }
  }
  if (threadIdx.x != 0) return;
  scratch.arrived[sample] = 0;
  if (kAny) {
    scratch.states[sample] = state;
    scratch.candidate_count[scratch.side(sample, kRaw)] = 0;
    scratch.candidate_count[scratch.side(sample, kAdjusted)] = 0;
  } else {
    const int32_t token = state.status == SampleStatus::kChosen ? token_of(state.best[kRaw]) : 0;
    publish(*table, sample, {token, NAN, state.status}, step);
    if (next_tokens != nullptr) next_tokens[sample] = token;
  }
}

/// Weights of a side of a row. `least`: below which they are 0.
__device__ Softmax softmax_of(const SampleRow& row, const RowState& state, int side, float least) {
  return {value_of(state.best[side]), side == kRaw ? 1.0f : row.temperature, least};
}

__global__ void __launch_bounds__(kSamplingThreads)
    weigh_kernel(const SampleTable* table, const float* logits, int64_t row_stride, SamplingScratch scratch) {
  __shared__ SliceRoom room;
  __shared__ SamplingOps::Scratch ops_scratch;
  const SamplingOps ops{ops_scratch};
  wait_for_predecessor();
  start_successor();
  const int slice = blockIdx.x, sample = blockIdx.y;
  if (sample >= table->count) return;
  const SampleRow& row = (*table)[sample];
  const RowState& state = scratch.states[sample];
  if (state.status != SampleStatus::kChosen || (row.logprobs < 0 && !draws(row))) return;
  const LogitRow from{logits + row.output * row_stride, scratch.vocabulary};
  const int32_t begin = slice * kSlice;
  float x[kEach];
  from.load(begin, x);

  const auto weigh = [&](int side, const Softmax& softmax) {
    const size_t of = scratch.side(sample, side);
    double sum = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) sum += static_cast<double>(softmax.weight(x[i]));
    sum = ops.sum(sum);
    if (threadIdx.x == 0) scratch.slice_sums[of * scratch.slices + slice] = sum;
    if (wanted(row, side, from.vocabulary) == 0) return;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const Ranked word = ranked(x[i], LogitRow::token(begin, i));
      const bool is_candidate =
          x[i] > -INFINITY && static_cast<uint32_t>(word >> 32) >= state.threshold[side];
      const uint32_t lanes = __ballot_sync(~0u, is_candidate);
      if (lanes == 0) continue;
      const int lane = threadIdx.x % 32;
      int32_t place = 0;
      if (lane == 0) place = atomicAdd(scratch.candidate_count + of, __popc(lanes));
      place = __shfl_sync(~0u, place, 0) + __popc(lanes & ((1u << lane) - 1));
      if (is_candidate && place < kCandidates) scratch.candidates[of * kCandidates + place] = word;
    }
  };
  if (row.logprobs >= 0) weigh(kRaw, softmax_of(row, state, kRaw, 0));
  if (draws(row)) {
    if (row.adjusts()) from.adjust(row, begin, room, x);
    weigh(kAdjusted, softmax_of(row, state, kAdjusted, row.is_limited(from.vocabulary) ? 0 : row.min_p));
  }
}

/// SplitMix64 (cpu/sampling.cpp).
__device__ uint64_t mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}
/// Of [0, 1), with 53 bits.
__device__ double uniform_of(uint64_t seed, uint64_t position) {
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15ull;
  return static_cast<double>(mix(mix(seed + kGolden) + kGolden * (position + 1)) >> 11) * 0x1p-53;
}

/// The candidates of a side into the list, descending; returns how many, or -1 if there were too many.
__device__ int32_t take_candidates(const SamplingScratch& scratch, size_t side, Ranked* list) {
  const int32_t count = scratch.candidate_count[side];
  if (count > kCandidates) return -1;
  for (int32_t i = threadIdx.x; i < count; i += kSamplingThreads)
    list[i] = scratch.candidates[side * kCandidates + i];
  SamplingOps::sort_descending(list, count);
  return count;
}

/// Draws from the whole vocabulary, in the order of ids, by the sums of slices.
__device__ int32_t draw_of_all(const RowSearch& search, double slice_sum, double share) {
  __shared__ int32_t slice;
  __shared__ double before_slice;
  const SamplingOps& ops = search.ops;
  const double before = ops.sum_before(slice_sum), target = share * ops.sum(slice_sum);
  const auto thread = static_cast<int32_t>(threadIdx.x);
  int32_t found = ops.lowest(slice_sum > 0 && before + slice_sum > target ? thread : INT32_MAX);
  if (found == INT32_MAX) found = ops.highest(slice_sum > 0 ? thread : 0);
  if (thread == found) {
    slice = found;
    before_slice = before;
  }
  __syncthreads();
  const int32_t begin = slice * kSlice;
  float x[kEach];
  search.from.load(begin, x);
  if (search.adjusts) search.from.adjust(search.row, begin, search.room.slice, x);
  float* weights = search.room.slice.values;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kEach; ++i) weights[LogitRow::token(0, i)] = search.softmax.weight(x[i]);
  __syncthreads();
  found = crossing(weights, kSlice, before_slice, Ends::kOver, target, ops);
  if (found == kSlice) found = last_weight(weights, kSlice, ops);
  return begin + found;
}

/// Draws from the row's most likely tokens. `count` of them are listed, -1: none; `listed_all`: there are no
/// others. `all`: the sum of all weights.
__device__ int32_t draw_of_likely(RowSearch& search, int32_t count, bool listed_all, double all,
                                  double share) {
  using Measure = RowSearch::Measure;
  const SampleRow& row = search.row;
  const SamplingOps& ops = search.ops;
  const int32_t vocabulary = search.from.vocabulary;
  const int32_t limit = row.top_k > 0 && row.top_k < vocabulary ? row.top_k : vocabulary;
  float* weights = search.room.slice.values;
  int32_t kept = min(count, limit);
  bool is_listed = count >= 0 && (kept == limit || listed_all);
  if (count > 0) {
    double sum = 0;
    for (int32_t i = threadIdx.x; i < kept; i += kSamplingThreads) {
      weights[i] = search.softmax.weight(value_of(search.room.list[i]));
      sum += static_cast<double>(weights[i]);
    }
    sum = ops.sum(sum);
    if (row.top_p < 1 && (is_listed || limit == vocabulary)) {
      if (limit < vocabulary) all = sum;
      const int32_t end =
          crossing(weights, kept, 0, Ends::kReached, static_cast<double>(row.top_p) * all, ops);
      if (end < kept) {
        kept = end + 1;
        is_listed = true;
      }
    }
  }
  if (is_listed) {
    int32_t end = kept;
    for (int32_t i = threadIdx.x; i < kept; i += kSamplingThreads) {
      if (weights[i] == 0 || weights[i] < row.min_p) end = min(end, i);
    }
    return token_of(search.room.list[draw_of(weights, max(ops.lowest(end), 1), share, ops)]);
  }

  if (limit < vocabulary) {
    search.floor = search.find(Measure::kCount, Ends::kReached, limit);
    all = search.weights();
  }
  if (row.top_p < 1)
    search.floor = search.find(Measure::kWeight, Ends::kReached, static_cast<double>(row.top_p) * all);
  search.softmax.least = row.min_p;
  return token_of(search.find(Measure::kWeight, Ends::kOver, share * search.weights()));
}

/// Writes the `count` most likely tokens. `listed` of them are in the list, -1: none.
__device__ void write_top(const RowSearch& search, int32_t listed, int32_t count, double log_sum) {
  const auto write = [&](int32_t begin, int32_t end) {
    for (int32_t i = begin + static_cast<int32_t>(threadIdx.x); i < end; i += kSamplingThreads) {
      const Ranked word = search.room.list[i - begin];
      const double logprob =
          static_cast<double>(value_of(word)) - static_cast<double>(search.softmax.top) - log_sum;
      search.row.top[i] = {token_of(word), static_cast<float>(logprob)};
    }
  };
  if (listed >= count) return write(0, count);
  Ranked high = search.best + 1;
  for (int32_t begin = 0; begin < count; begin += kCandidates) {
    const int32_t end = min(begin + kCandidates, count);
    const Ranked low = search.find(RowSearch::Measure::kCount, Ends::kReached, end);
    search.list(low, high);
    write(begin, end);
    high = low;
  }
}

__global__ void __launch_bounds__(kSamplingThreads)
    choose_kernel(const SampleTable* table, StepView step, const float* logits, int64_t row_stride,
                  SamplingScratch scratch, int32_t* next_tokens) {
  NIWAKI_DYNAMIC_SHARED(shared);
  __shared__ SamplingOps::Scratch ops_scratch;
  ChooseRoom& room = *reinterpret_cast<ChooseRoom*>(shared);
  const SamplingOps ops{ops_scratch};
  wait_for_predecessor();
  start_successor();
  const int sample = blockIdx.x;
  if (sample >= table->count) return;
  const SampleRow& row = (*table)[sample];
  const RowState& state = scratch.states[sample];
  const LogitRow from{logits + row.output * row_stride, scratch.vocabulary};
  SampleOutput output{0, NAN, state.status};
  const auto slice_sum = [&](int side) {
    if (static_cast<int>(threadIdx.x) >= scratch.slices) return 0.0;
    return scratch.slice_sums[scratch.side(sample, side) * scratch.slices + threadIdx.x];
  };

  if (state.status == SampleStatus::kChosen && draws(row)) {
    const size_t side = scratch.side(sample, kAdjusted);
    const bool is_limited = row.is_limited(from.vocabulary);
    const int32_t position = step.positions[step.outputs[row.output]];
    const double share = uniform_of(row.seed, static_cast<uint64_t>(static_cast<int64_t>(position) + 1));
    RowSearch search{row,
                     from,
                     softmax_of(row, state, kAdjusted, is_limited ? 0 : row.min_p),
                     state.best[kAdjusted],
                     0,
                     row.adjusts(),
                     room,
                     ops};
    if (is_limited) {
      const int32_t count = take_candidates(scratch, side, room.list);
      output.token = draw_of_likely(search, count, state.threshold[kAdjusted] == 0,
                                    ops.sum(slice_sum(kAdjusted)), share);
    } else {
      output.token = draw_of_all(search, slice_sum(kAdjusted), share);
    }
    __syncthreads();
  } else if (state.status == SampleStatus::kChosen) {
    output.token = token_of(state.best[kAdjusted]);
  }

  if (state.status == SampleStatus::kChosen && row.logprobs >= 0) {
    const RowSearch search{row, from, softmax_of(row, state, kRaw, 0), state.best[kRaw], 0, false, room, ops};
    const double log_sum = log(ops.sum(slice_sum(kRaw)));
    const double logit = static_cast<double>(from.logits[output.token]);
    output.logprob = static_cast<float>(logit - static_cast<double>(search.softmax.top) - log_sum);
    if (row.logprobs > 0) {
      const int32_t listed = take_candidates(scratch, scratch.side(sample, kRaw), room.list);
      write_top(search, listed, row.logprobs, log_sum);
    }
  }
  if (threadIdx.x != 0) return;
  publish(*table, sample, output, step);
  if (next_tokens != nullptr) next_tokens[sample] = output.token;
}

/// Memory is handed out in pieces, each aligned to 256 bytes; without memory they are only counted.
class Pieces {
 public:
  explicit Pieces(std::byte* memory) : memory_(memory) {}
  template <class T>
  void take(T*& pointer, size_t count) {
    pointer = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + bytes_);
    bytes_ += (count * sizeof(T) + 255) / 256 * 256;
  }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* memory_;
  size_t bytes_ = 0;
};

SamplingScratch scratch_in(Pieces& pieces, int32_t samples, int32_t vocabulary) {
  SamplingScratch scratch{};
  scratch.vocabulary = vocabulary;
  scratch.slices = (vocabulary + kSlice - 1) / kSlice;
  const auto sides = static_cast<size_t>(samples) * 2, slices = static_cast<size_t>(scratch.slices);
  pieces.take(scratch.arrived, static_cast<size_t>(samples));
  pieces.take(scratch.states, static_cast<size_t>(samples));
  pieces.take(scratch.slice_best, sides * slices);
  pieces.take(scratch.group_best, sides * slices * kWarps);
  pieces.take(scratch.slice_sums, sides * slices);
  pieces.take(scratch.candidate_count, sides);
  pieces.take(scratch.candidates, sides * kCandidates);
  return scratch;
}

/// Of the results, after StepView::first_bad.
constexpr size_t kOutputsAt = 16;

bool has_penalties(const SampleSpec& spec) {
  return !spec.history.empty() &&
         (spec.repetition_penalty != 1 || spec.presence_penalty != 0 || spec.frequency_penalty != 0);
}

}  // namespace

CudaSampler::CudaSampler(int32_t max_samples, int32_t vocabulary)
    : max_samples_(max_samples), vocabulary_(vocabulary) {
  if (vocabulary > kMaxVocabulary) {
    throw Error(ErrorCode::kUnsupported, "sampling on a GPU: the vocabulary may have at most " +
                                             std::to_string(kMaxVocabulary) + " tokens, got " +
                                             std::to_string(vocabulary));
  }
  Pieces counted(nullptr);
  scratch_in(counted, max_samples, vocabulary);
  scratch_bytes_ = counted.bytes();
  scratch_ = allocate(scratch_bytes_);
  check(cudaMemset(scratch_.get(), 0, scratch_bytes_), "clearing the memory of sampling");
  allow_shared(choose_kernel, sizeof(ChooseRoom));
}

CudaSampler::~CudaSampler() = default;

CudaSampler::DeviceMemory CudaSampler::allocate(size_t bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes), "allocating " + std::to_string(bytes) + " bytes for sampling");
  return DeviceMemory(static_cast<std::byte*>(memory));
}

SamplingScratch CudaSampler::scratch() const {
  Pieces pieces(scratch_.get());
  return scratch_in(pieces, max_samples_, vocabulary_);
}

size_t CudaSampler::packed_bytes(const Step& step) {
  size_t bytes = sizeof(SampleTable) + step.samples.size() * sizeof(SampleRow);
  for (const SampleSpec& spec : step.samples) {
    bytes += spec.bias.size() * sizeof(TokenBias);
    if (has_penalties(spec)) bytes += spec.history.size() * sizeof(int32_t);
  }
  return bytes;
}

size_t CudaSampler::result_bytes(const Step& step) {
  size_t bytes = kOutputsAt + step.samples.size() * sizeof(SampleOutput);
  for (const SampleSpec& spec : step.samples)
    bytes += static_cast<size_t>(std::max(spec.logprobs, 0)) * sizeof(TokenLogprob);
  return bytes;
}

CudaSampler::Kind CudaSampler::kind_of(const Step& step) {
  const bool greedy = std::all_of(step.samples.begin(), step.samples.end(), [](const SampleSpec& spec) {
    return spec.temperature == 0 && spec.logprobs < 0 && spec.bias.empty() && !has_penalties(spec);
  });
  return greedy ? Kind::kGreedy : Kind::kAny;
}

void CudaSampler::pack(const Step& step, std::byte* staging, const std::byte* device,
                       std::byte* results) const {
  const size_t count = step.samples.size();
  if (count > static_cast<size_t>(max_samples_)) {
    throw Error(ErrorCode::kUnsupported, "step: a GPU takes at most " + std::to_string(max_samples_) +
                                             " samples, got " + std::to_string(count) +
                                             "; make more steps of them");
  }
  size_t at = sizeof(SampleTable) + count * sizeof(SampleRow);
  const auto append = [&]<class T>(const T* from, size_t n, const T*& pointer) {
    pointer = reinterpret_cast<const T*>(device + at);
    if (n > 0) std::memcpy(staging + at, from, n * sizeof(T));
    at += n * sizeof(T);
  };
  auto* outputs = reinterpret_cast<SampleOutput*>(results + kOutputsAt);
  auto* top = reinterpret_cast<TokenLogprob*>(outputs + count);
  std::vector<TokenBias> biases;
  for (size_t i = 0; i < count; ++i) {
    const SampleSpec& spec = step.samples[i];
    SampleRow row{};
    row.seed = spec.seed;
    row.output = spec.output;
    row.top_k = spec.top_k;
    row.logprobs = spec.logprobs;
    row.temperature = spec.temperature;
    row.top_p = spec.top_p;
    row.min_p = spec.min_p;
    row.repetition_penalty = spec.repetition_penalty;
    row.presence_penalty = spec.presence_penalty;
    row.frequency_penalty = spec.frequency_penalty;

    row.history_length = has_penalties(spec) ? static_cast<int32_t>(spec.history.size()) : 0;
    append(spec.history.data(), static_cast<size_t>(row.history_length), row.history);
    biases.clear();
    for (const auto& [token, bias] : spec.bias) biases.push_back({token, bias});
    std::stable_sort(biases.begin(), biases.end(),
                     [](const TokenBias& a, const TokenBias& b) { return a.token < b.token; });
    row.bias_count = static_cast<int32_t>(biases.size());
    append(biases.data(), biases.size(), row.biases);
    row.top = top;
    if (spec.logprobs > 0) top += spec.logprobs;

    std::memcpy(staging + sizeof(SampleTable) + i * sizeof(SampleRow), &row, sizeof row);
  }
  const SampleTable table{static_cast<int32_t>(count), reinterpret_cast<unsigned long long*>(results),
                          outputs};
  std::memcpy(staging, &table, sizeof table);
}

void CudaSampler::launch(cudaStream_t stream, Kind kind, int32_t bucket, const StepView& step,
                         const std::byte* packed, const float* logits, int64_t row_stride,
                         int32_t* next_tokens) const {
  const SamplingScratch scratch = this->scratch();
  const auto* table = reinterpret_cast<const SampleTable*>(packed);
  const auto samples = static_cast<unsigned>(bucket);
  const LaunchShape by_slice{dim3(static_cast<unsigned>(scratch.slices), samples), dim3(kSamplingThreads), 0,
                             true};
  if (kind == Kind::kGreedy) {
    cuda::launch(scan_kernel<false>, by_slice, stream, table, step, logits, row_stride, scratch, next_tokens);
    return;
  }
  cuda::launch(scan_kernel<true>, by_slice, stream, table, step, logits, row_stride, scratch, next_tokens);
  cuda::launch(weigh_kernel, by_slice, stream, table, logits, row_stride, scratch);
  cuda::launch(choose_kernel, LaunchShape{dim3(samples), dim3(kSamplingThreads), sizeof(ChooseRoom), true},
               stream, table, step, logits, row_stride, scratch, next_tokens);
}

std::vector<SampleResult> CudaSampler::unpack(const Step& step, const std::byte* results,
                                              const std::function<std::string(size_t sample)>& describe) {
  const size_t count = step.samples.size();
  std::vector<SampleResult> unpacked(count);
  size_t at = kOutputsAt + count * sizeof(SampleOutput);
  for (size_t i = 0; i < count; ++i) {
    SampleOutput output;
    std::memcpy(&output, results + kOutputsAt + i * sizeof output, sizeof output);
    if (output.status == SampleStatus::kNotFinite) {
      throw Error(ErrorCode::kNonFinite, describe(i) + ": the logits hold NaN or infinity");
    }
    if (output.status == SampleStatus::kAllBanned) {
      throw Error(ErrorCode::kInvalidArgument, describe(i) + ": the logit biases ban every token");
    }
    unpacked[i].token = output.token;
    unpacked[i].logprob = output.logprob;
    const int32_t logprobs = step.samples[i].logprobs;
    if (logprobs <= 0) continue;
    unpacked[i].top.resize(static_cast<size_t>(logprobs));
    const size_t bytes = unpacked[i].top.size() * sizeof(TokenLogprob);
    std::memcpy(unpacked[i].top.data(), results + at, bytes);
    at += bytes;
  }
  return unpacked;
}

}  // namespace niwaki::cuda
