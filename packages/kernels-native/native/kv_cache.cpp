#include "niwaki/kv_cache.h"

#include "exports.h"
#include "handle.h"

namespace niwaki::node {

Napi::Value create_kv_cache(const Napi::CallbackInfo& info) {
  const auto env = info.Env();
  const auto shape = info[0].As<Napi::Object>();
  const auto number = [&](const char* name) { return shape.Get(name).As<Napi::Number>().Int32Value(); };
  auto cache = std::make_shared<KvCache>(KvShape{.layers = number("layers"),
                                                 .kv_heads = number("kvHeads"),
                                                 .head_dim = number("headDim"),
                                                 .block_size = number("blockSize"),
                                                 .blocks = number("blocks"),
                                                 .type = static_cast<KvType>(number("type"))});
  const size_t bytes = cache->bytes();
  auto result = Napi::Object::New(env);
  result.Set("byteLength", static_cast<double>(bytes));
  result.Set("handle", wrap(env, std::move(cache), bytes));
  return result;
}

}  // namespace niwaki::node
