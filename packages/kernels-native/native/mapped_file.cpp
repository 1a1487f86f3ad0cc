#include "niwaki/mapped_file.h"

#include "exports.h"
#include "handle.h"

namespace niwaki::node {

Napi::Value open_file(const Napi::CallbackInfo& info) {
  const auto env = info.Env();
  auto file = MappedFile::open(info[0].As<Napi::String>().Utf8Value());
  auto result = Napi::Object::New(env);
  result.Set("byteLength", static_cast<double>(file->size()));
  result.Set("handle", wrap(env, std::move(file)));
  return result;
}

}  // namespace niwaki::node
