#pragma once
// Errors by their code and their message.
#include <cstdio>
#include <string>

#include "niwaki/error.h"

namespace niwaki::test {

/// What the error says that f throws, which must have this code.
template <class F>
std::string message_of(ErrorCode code, F&& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.code == code ? error.what() : std::string("another code: ") + error.what();
  }
  return "no error";
}
inline bool contains(const std::string& text, const std::string& part) {
  const bool found = text.find(part) != std::string::npos;
  if (!found) std::printf("  \"%s\" is not in \"%s\"\n", part.c_str(), text.c_str());
  return found;
}

}  // namespace niwaki::test
