#pragma once
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

namespace niwaki {

class AdapterSlots;

/// An adapter that a sequence runs with, and its weight in the sequence's mix.
struct AdapterUse {
  int32_t slot;
  float weight;
  friend bool operator==(const AdapterUse&, const AdapterUse&) = default;
};

/// One sequence's share of a step: `row_count` consecutive rows. Row i of them is at position
/// context_length - row_count + i, so that context_length counts the tokens after the step.
struct StepSequence {
  int32_t row_count;
  int32_t context_length;
  std::vector<int32_t> block_table;       // at least ceil(context_length / block_size) ids
  std::vector<AdapterUse> adapters = {};  // added in this order; at most kMaxMix
};

/// How to choose the next token from the logits of one output row. In this order: logit bias, repetition /
/// presence / frequency penalties over `history`, then greedy (temperature 0) or temperature, top-k, top-p,
/// min-p and a draw. The draw depends on (seed, position) alone, so what else runs in the step changes
/// nothing.
struct SampleSpec {
  int32_t output = 0;            // index into Step::outputs
  float temperature = 0;         // 0: greedy, ties to the lowest id
  int32_t top_k = 0;             // 0: off
  float top_p = 1;               // 1: off
  float min_p = 0;               // 0: off
  float repetition_penalty = 1;  // Keskar et al., 2019
  float presence_penalty = 0;
  float frequency_penalty = 0;
  uint64_t seed = 0;
  int32_t logprobs =
      -1;  // -1: none; n: of the chosen token and of the n most likely, of the unmodified logits
  std::vector<int32_t> history;                 // the window that the penalties look at
  std::vector<std::pair<int32_t, float>> bias;  // token, added to its logit; -infinity bans it
  std::vector<int32_t> stop_tokens;             // that no step follows (Step::following)
};

/// One forward pass: any mix of prompt chunks and decode rows.
struct Step {
  std::vector<int32_t> tokens;          // R rows, grouped by sequence
  std::vector<StepSequence> sequences;  // their row counts sum to R
  std::vector<int32_t> outputs;         // rows that need logits, ascending
  std::vector<SampleSpec> samples;
  std::shared_ptr<const AdapterSlots> adapter_slots;  // that the sequences' adapters are in
  bool want_logits = false;                           // copy the logits of every output row into the result
  /// So many steps may follow at once, each a decode step of the same sequences: the row of a sequence is the
  /// token that the step before chose for it, one position on. Then the last row of each sequence, and no
  /// other, is an output and has its sample, in the same order and without history, block tables reach as
  /// far, and logits are not wanted. The first step that chooses one of the stop tokens is the last.
  int32_t following = 0;
  /// Seconds: where steps follow, samples are handed over before another step would make those of this time
  /// more (Device::run).
  double samples_within = std::numeric_limits<double>::infinity();
};

struct TokenLogprob {
  int32_t token;
  float logprob;
};

struct SampleResult {
  int32_t token;
  float logprob;                  // NaN unless asked for
  std::vector<TokenLogprob> top;  // descending; ties to the lower id
};

struct StepResult {
  std::vector<SampleResult> samples;  // one per SampleSpec, of each of the steps that were not handed over
  std::vector<float> logits;          // [outputs, vocabulary] if want_logits
  double waited = 0;                  // seconds until the device had done what was submitted before
};

}  // namespace niwaki
