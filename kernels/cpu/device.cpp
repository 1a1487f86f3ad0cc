#include "niwaki/device.h"

#include <system_error>

#include "cpu/adapter_slots.h"
#include "cpu/plan.h"
#include "cpu/tier.h"
#include "cpu/weight_memory.h"
#include "niwaki/error.h"
#include "src/queued_device.h"

namespace niwaki {
namespace {

class CpuDevice final : public QueuedDevice {
 public:
  CpuDevice(const Tier& tier, int32_t threads) : QueuedDevice(threads), tier_(tier), tier_name_(tier.name) {}
  ~CpuDevice() override { close(); }

  int32_t threads() const override { return pool().threads(); }
  const std::string& tier() const override { return tier_name_; }

  std::shared_ptr<KvCache> create_kv_cache(const KvShape& shape) override {
    return std::make_shared<CpuKvCache>(shape);
  }

  std::shared_ptr<Plan> compile(PlanSpec spec) override {
    return std::make_shared<CpuPlan>(std::move(spec), tier_, pool(), identity());
  }

 private:
  std::shared_ptr<const Matrix> pack(const std::vector<MatrixSource>& sources, int64_t columns) override {
    return CpuMatrix::pack(sources, columns, tier_.linear.sign_order, pool(), arena_);
  }
  std::shared_ptr<QueuedSlots> make_slots(std::shared_ptr<QueuedPlan> plan, AdapterSlotsSpec spec) override {
    return std::make_shared<CpuAdapterSlots>(std::static_pointer_cast<CpuPlan>(std::move(plan)),
                                             std::move(spec));
  }

  const Tier& tier_;
  const std::string tier_name_;
  WeightArena arena_;  // only jobs use it, one after another
};

}  // namespace

std::shared_ptr<Device> Device::open(const Options& options) {
  if (options.threads < 0 || options.threads > 256) {
    throw Error(ErrorCode::kInvalidArgument,
                "threads must be 0 to 256, got " + std::to_string(options.threads));
  }
  const Tier& tier = choose_tier(options.tier);
  const int32_t threads = options.threads == 0 ? usable_cores() : options.threads;
  try {
    return std::make_shared<CpuDevice>(tier, threads);
  } catch (const std::system_error& error) {
    throw Error(ErrorCode::kOutOfMemory,
                "cannot start " + std::to_string(threads) + " threads: " + error.what());
  }
}

std::vector<std::string> Device::tiers() {
  std::vector<std::string> names;
  for (const Tier* tier : available_tiers()) names.push_back(tier->name);
  return names;
}

}  // namespace niwaki
