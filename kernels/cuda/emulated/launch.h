#pragma once
// niwaki::cuda::launch for the emulator; included by cuda/runtime.h.
#include <tuple>
#include <type_traits>

namespace niwaki::cuda {

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
            Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments));
  static_assert((std::is_trivially_copyable_v<Parameters> && ...),
                "a kernel's parameters are copied as bytes");
  const std::tuple<Parameters...> copies(static_cast<Parameters>(arguments)...);
  check(emulated::launch_grid(reinterpret_cast<const void*>(kernel), shape.grid, shape.block, shape.shared,
                              stream, [kernel, copies] { std::apply(kernel, copies); }),
        "starting a kernel");
}

}  // namespace niwaki::cuda
