#include "niwaki/matrix.h"

#include <cstring>
#include <string>
#include <vector>

#include "exports.h"
#include "handle.h"
#include "jobs.h"
#include "niwaki/error.h"
#include "niwaki/mapped_file.h"

namespace niwaki::node {
namespace {

/// Keeps what the sources of a matrix point into, and gives the pages of mapped files back when they have
/// been read.
class SourceMemory {
 public:
  /// The bytes of `source`, which is { name, type, rows, data } with data a Uint8Array or { file, offset }.
  MatrixSource add(const Napi::Object& source, int64_t columns) {
    MatrixSource result{.name = source.Get("name").As<Napi::String>().Utf8Value(),
                        .type = static_cast<DataType>(source.Get("type").As<Napi::Number>().Int32Value()),
                        .rows = source.Get("rows").As<Napi::Number>().Int64Value(),
                        .data = nullptr};
    const auto data = source.Get("data").As<Napi::Object>();
    if (data.IsTypedArray()) {
      const auto bytes = data.As<Napi::Uint8Array>();
      check(result, columns, bytes.ElementLength());
      // A copy: JavaScript may write into the array, or transfer it, before the matrix has been packed.
      copies_.emplace_back(bytes.Data(), bytes.Data() + bytes.ElementLength());
      result.data = copies_.back().data();
      return result;
    }
    const auto& file = unwrap<MappedFile>(data.Get("file"));
    const auto offset = static_cast<uint64_t>(data.Get("offset").As<Napi::Number>().Int64Value());
    if (offset > file->size()) throw outside(result.name, file->path());
    const size_t bytes = check(result, columns, file->size() - offset);
    file->check_size();
    ranges_.push_back({file, offset, bytes});
    result.data = file->data() + offset;
    return result;
  }

  void release() const {
    for (const auto& range : ranges_) range.file->release(range.offset, range.bytes);
  }

 private:
  struct Range {
    std::shared_ptr<MappedFile> file;
    size_t offset;
    size_t bytes;
  };

  static Error outside(const std::string& name, const std::string& where) {
    return Error(ErrorCode::kInvalidArgument, name + ": its rows reach beyond the end of " + where);
  }

  /// The bytes that the rows occupy, which must be available.
  static size_t check(const MatrixSource& source, int64_t columns, size_t available) {
    const size_t row = row_bytes(source.type, columns);
    if (row == 0 || source.rows < 1 || static_cast<uint64_t>(source.rows) > available / row) {
      throw outside(source.name, "its data");
    }
    return row * static_cast<size_t>(source.rows);
  }

  std::vector<std::vector<uint8_t>> copies_;
  std::vector<Range> ranges_;
};

class PendingMatrix final : public PendingJob {
 public:
  Napi::Value result(Napi::Env env) override {
    auto object = Napi::Object::New(env);
    const size_t bytes = matrix->bytes();
    object.Set("byteLength", static_cast<double>(bytes));
    object.Set("handle", wrap(env, std::move(matrix), bytes));
    return object;
  }

  std::shared_ptr<const Matrix> matrix;
};

}  // namespace

Napi::Value load_matrix(const Napi::CallbackInfo& info) {
  const auto env = info.Env();
  const int64_t columns = info[1].As<Napi::Number>().Int64Value();
  const auto list = info[2].As<Napi::Array>();
  auto memory = std::make_shared<SourceMemory>();
  std::vector<MatrixSource> sources;
  for (uint32_t i = 0; i < list.Length(); ++i) {
    sources.push_back(memory->add(list.Get(i).As<Napi::Object>(), columns));
  }

  auto pending = std::make_unique<PendingMatrix>();
  pending->device = unwrap<Device>(info[0]);
  pending->callback = Napi::Persistent(info[3].As<Napi::Function>());
  return start_job(env, std::move(pending), [&](PendingMatrix* job, const std::shared_ptr<JobQueue>& queue) {
    return job->device->load(
        std::move(sources), columns, memory,
        [job, queue, memory](std::exception_ptr error, std::shared_ptr<const Matrix> matrix) {
          memory->release();
          job->error = error;
          job->matrix = std::move(matrix);
          queue->complete(job);
        });
  });
}

Napi::Value load_vector(const Napi::CallbackInfo& info) {
  const int64_t columns = info[1].As<Napi::Number>().Int64Value();
  SourceMemory memory;
  const auto source = memory.add(info[0].As<Napi::Object>(), columns);
  std::vector<float> values(static_cast<size_t>(columns));
  std::memcpy(values.data(), source.data, values.size() * sizeof(float));
  return wrap(info.Env(), std::make_shared<Vector>(source.name, values));
}

}  // namespace niwaki::node
