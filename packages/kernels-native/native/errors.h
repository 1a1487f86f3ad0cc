#pragma once
#include <napi.h>

#include <exception>

namespace niwaki::node {

/// The JavaScript error of a C++ exception: its message, and `code` as in the KernelErrorCode of TypeScript.
Napi::Error to_error(Napi::Env env, std::exception_ptr exception);

/// An error for an object used after it was disposed.
Napi::Error disposed(Napi::Env env);

/// Wraps an exported function: a C++ exception becomes a JavaScript one.
template <Napi::Value (*function)(const Napi::CallbackInfo&)>
Napi::Value guarded(const Napi::CallbackInfo& info) {
  try {
    return function(info);
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw to_error(info.Env(), std::current_exception());
  }
}

}  // namespace niwaki::node
