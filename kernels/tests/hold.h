#pragma once
#include <atomic>
#include <future>

#include "niwaki/device.h"

namespace niwaki::test {

/// Keeps a device busy until it is released.
class Hold {
 public:
  explicit Hold(Device& device) {
    device.submit([this](ThreadPool&, const std::atomic<bool>&) { released_.wait(false); },
                  [this](std::exception_ptr) { ended_.set_value(); });
  }
  void release() {
    released_ = true;
    released_.notify_one();
    ended_.get_future().wait();
  }

 private:
  std::atomic<bool> released_{false};
  std::promise<void> ended_;
};

}  // namespace niwaki::test
