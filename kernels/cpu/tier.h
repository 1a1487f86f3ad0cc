#pragma once
#include <string>
#include <vector>

namespace niwaki {

struct LinearKernels;     // cpu/linear_kernels.h: quantiser, sign and float matrix kernels
struct RowKernels;        // cpu/row_kernels.h: norms, rope, activation, sampling scans
struct AttentionKernels;  // cpu/attention_kernels.h
struct AdapterKernels;    // cpu/adapter_kernels.h
struct TrainingKernels;   // cpu/training/training_kernels.h

/// A set of kernels for an instruction set. Every tier computes the same integers and the same floats in the
/// same order: the results are equal to the bit. The rules that make it so:
///   - fused multiply-add is written out (std::fma or the instruction) and the compiler may not contract on
///   its own;
///   - a float reduction over a row runs in 16 lanes, element i in lane i mod 16, each lane ascending, and
///   the lanes are
///     added as a tree: 8+8, 4+4, 2+2, 1+1;
///   - exp is our own polynomial, sin and cos are computed in double by our own code, once a step, in no
///   tier;
///   - integer sums are exact.
struct Tier {
  const char* name;  // "portable", "avx2", "avx512", "avx512vbmi", "neon"
  const LinearKernels& linear;
  const RowKernels& rows;
  const AttentionKernels& attention;
  const AdapterKernels& adapters;
  const TrainingKernels& training;
};

/// Tiers that this machine can run, best first; the last is always "portable".
std::vector<const Tier*> available_tiers();

/// "" chooses the best, or the one that the environment variable NIWAKI_TIER names. Throws kUnsupported.
const Tier& choose_tier(const std::string& name);

}  // namespace niwaki
