#include "cpu/tier.h"

#include <cstdlib>

#include "cpu/adapter_kernels.h"
#include "cpu/attention_kernels.h"
#include "cpu/linear_kernels.h"
#include "cpu/row_kernels.h"
#include "cpu/stream_prefetch.h"
#include "cpu/training/training_kernels.h"
#include "niwaki/error.h"

namespace niwaki {
namespace {

const Tier kPortable = {"portable",
                        kPortableLinearKernels,
                        kPortableRowKernels,
                        kPortableAttentionKernels,
                        kPortableAdapterKernels,
                        kPortableTrainingKernels};

#ifdef NIWAKI_X86
const Tier kAvx2 = {"avx2",
                    kAvx2LinearKernels,
                    kAvx2RowKernels,
                    kAvx2AttentionKernels,
                    kAvx2AdapterKernels,
                    kAvx2TrainingKernels};

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
         __builtin_cpu_supports("bmi2");
}

const Tier kAvx512 = {"avx512",
                      kAvx512LinearKernels,
                      kAvx512RowKernels,
                      kAvx512AttentionKernels,
                      kAvx512AdapterKernels,
                      kAvx512TrainingKernels};

const Tier kAvx512Vbmi = {"avx512vbmi",          kAvx512VbmiLinearKernels,
                          kAvx512RowKernels,     kAvx512AttentionKernels,
                          kAvx512AdapterKernels, kAvx512TrainingKernels};

/// True only where the operating system saves the wider registers too: the builtins ask XGETBV.
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

#ifdef NIWAKI_ARM64
// Whatever runs AArch64 code has what this needs.
const Tier kNeon = {"neon",
                    kNeonLinearKernels,
                    kNeonRowKernels,
                    kNeonAttentionKernels,
                    kNeonAdapterKernels,
                    kNeonTrainingKernels};
#endif

}  // namespace

std::vector<const Tier*> available_tiers() {
  std::vector<const Tier*> tiers;
#ifdef NIWAKI_X86
  // Where the first-level cache is larger (Zen 5), the tables of avx512 come as near to the bound of memory.
  const bool vbmi =
      has_avx512() && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
  if (vbmi && !kStreamIntoFirstLevel) tiers.push_back(&kAvx512Vbmi);
  if (has_avx512()) tiers.push_back(&kAvx512);
  if (vbmi && kStreamIntoFirstLevel) tiers.push_back(&kAvx512Vbmi);
  if (has_avx2()) tiers.push_back(&kAvx2);
#endif
#ifdef NIWAKI_ARM64
  tiers.push_back(&kNeon);
#endif
  tiers.push_back(&kPortable);
  return tiers;
}

const Tier& choose_tier(const std::string& name) {
  const char* variable = std::getenv("NIWAKI_TIER");
  const bool from_variable = name.empty() && variable != nullptr && variable[0] != 0;
  const std::string wanted = from_variable ? variable : name;
  const std::vector<const Tier*> tiers = available_tiers();
  if (wanted.empty()) return *tiers.front();
  std::string names;
  for (const Tier* tier : tiers) {
    if (wanted == tier->name) return *tier;
    names += std::string(names.empty() ? "" : ", ") + tier->name;
  }
  throw Error(ErrorCode::kUnsupported, "there is no tier \"" + wanted + "\"" +
                                           (from_variable ? " (from NIWAKI_TIER)" : "") +
                                           " on this machine; it has " + names);
}

}  // namespace niwaki
