#pragma once
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <utility>
#include <vector>

// A test is `TEST(name) { CHECK(...); }`; a test program ends with TEST_MAIN().
namespace niwaki::test {

inline std::vector<std::pair<std::string, std::function<void()>>>& all() {
  static std::vector<std::pair<std::string, std::function<void()>>> tests;
  return tests;
}
inline int& failures() {
  static int count = 0;
  return count;
}
struct Register {
  Register(const char* name, std::function<void()> body) { all().emplace_back(name, std::move(body)); }
};

inline int run_all() {
  int failed = 0;
  for (auto& [name, body] : all()) {
    failures() = 0;
    body();
    std::printf("%s %s\n", failures() == 0 ? "ok  " : "FAIL", name.c_str());
    failed += failures() != 0;
  }
  std::printf("%zu passed, %d failed\n", all().size() - static_cast<size_t>(failed), failed);
  return failed == 0 ? 0 : 1;
}

}  // namespace niwaki::test

#define TEST(name)                                                   \
  static void test_##name();                                         \
  static niwaki::test::Register register_##name(#name, test_##name); \
  static void test_##name()
#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) {                                                         \
      ++niwaki::test::failures();                                               \
      std::printf("%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition); \
    }                                                                           \
  } while (0)
#define TEST_MAIN() \
  int main() { return niwaki::test::run_all(); }
