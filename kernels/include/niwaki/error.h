#pragma once
#include <stdexcept>
#include <string>

namespace niwaki {

enum class ErrorCode {
  kInvalidArgument,  // a caller's mistake that the typed door should have caught
  kOutOfMemory,
  kIo,           // a file could not be opened, mapped or read
  kUnsupported,  // a tier or type that this build or machine does not have
  kNonFinite,    // NaN or infinity in weights or activations; the message names where
  kCancelled,
};

/// Every failure of this library. The message says what was tried, why it failed and, where there is one, the
/// way out.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code(code) {}
  const ErrorCode code;
};

}  // namespace niwaki
