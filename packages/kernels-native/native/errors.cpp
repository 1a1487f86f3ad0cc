#include "errors.h"

#include <new>

#include "niwaki/error.h"

namespace niwaki::node {
namespace {

const char* code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "invalid-argument";
    case ErrorCode::kOutOfMemory:
      return "out-of-memory";
    case ErrorCode::kIo:
      return "io";
    case ErrorCode::kUnsupported:
      return "unsupported";
    case ErrorCode::kNonFinite:
      return "non-finite";
    case ErrorCode::kCancelled:
      return "cancelled";
  }
  return "invalid-argument";
}

Napi::Error make_error(Napi::Env env, const char* code, const std::string& message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, code));
  return error;
}

}  // namespace

Napi::Error to_error(Napi::Env env, std::exception_ptr exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const Error& error) {
    return make_error(env, code_name(error.code), error.what());
  } catch (const std::bad_alloc&) {
    return make_error(env, "out-of-memory", "the system has no memory left for this call");
  } catch (const std::exception& error) {
    return Napi::Error::New(env, error.what());
  }
}

Napi::Error disposed(Napi::Env env) {
  return make_error(env, "disposed", "the object has been disposed");
}

}  // namespace niwaki::node
