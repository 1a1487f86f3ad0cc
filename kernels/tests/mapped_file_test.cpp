#include "niwaki/mapped_file.h"

#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "niwaki/error.h"
#include "tests/check.h"

using namespace niwaki;
namespace fs = std::filesystem;

namespace {

/// A directory that ends with the test.
struct Directory {
  Directory() {
    std::string name = (fs::temp_directory_path() / "niwaki-XXXXXX").string();
    path = mkdtemp(name.data());
  }
  ~Directory() { fs::remove_all(path); }
  fs::path path;
};

void write(const fs::path& path, size_t bytes) {
  std::ofstream file(path, std::ios::binary);
  for (size_t i = 0; i < bytes; ++i) file.put(static_cast<char>(i * 7 + i / 251));
}

std::string error_of(const std::string& path) {
  try {
    MappedFile::open(path);
  } catch (const Error& error) {
    return error.code == ErrorCode::kIo ? error.what() : "another code";
  }
  return "";
}

}  // namespace

TEST(maps_every_byte) {
  const Directory directory;
  const fs::path path = directory.path / "a.bin";
  write(path, 10'001);
  const auto file = MappedFile::open(path.string());
  CHECK(file->size() == 10'001 && file->path() == path.string());
  const auto right = [&] {
    for (size_t i = 0; i < file->size(); ++i) {
      if (file->data()[i] != static_cast<uint8_t>(i * 7 + i / 251)) return false;
    }
    return true;
  };
  CHECK(right());
  file->release(0, 10'001);
  file->release(5000, 100);
  file->release(20'000, SIZE_MAX);
  CHECK(right());  // released pages come back from the file
}

TEST(names_path_and_reason) {
  const Directory directory;
  const fs::path empty = directory.path / "empty.gguf";
  write(empty, 0);
  CHECK(error_of((directory.path / "none.gguf").string()).find("none.gguf\": No such file") !=
        std::string::npos);
  CHECK(error_of(directory.path.string()).find("Is a directory") != std::string::npos);
  CHECK(error_of(empty.string()).find("empty.gguf\" is empty") != std::string::npos);
  CHECK(error_of("/dev/null").find("not a regular file") != std::string::npos);
}

TEST(notices_that_the_file_became_shorter) {
  const Directory directory;
  const fs::path path = directory.path / "a.bin";
  write(path, 9000);
  const auto file = MappedFile::open(path.string());
  file->check_size();
  fs::resize_file(path, 100);
  try {
    file->check_size();
    CHECK(false);
  } catch (const Error& error) {
    CHECK(error.code == ErrorCode::kIo);
    CHECK(std::string(error.what()).find("9000") != std::string::npos);
  }
}

TEST_MAIN()
