#include "exports.h"
#include "handle.h"
#include "niwaki/device.h"

namespace niwaki::node {

Napi::Value create_kv_cache(const Napi::CallbackInfo& info) {
  const auto env = info.Env();
  const auto shape = info[1].As<Napi::Object>();
  const auto number = [&](const char* name) { return shape.Get(name).As<Napi::Number>().Int32Value(); };
  auto cache = unwrap<Device>(info[0])->create_kv_cache({.layers = number("layers"),
                                                         .kv_heads = number("kvHeads"),
                                                         .head_dim = number("headDim"),
                                                         .block_size = number("blockSize"),
                                                         .blocks = number("blocks"),
                                                         .type = static_cast<KvType>(number("type"))});
  const size_t bytes = cache->bytes();
  auto result = Napi::Object::New(env);
  result.Set("byteLength", static_cast<double>(bytes));
  result.Set("blockByteLength", static_cast<double>(cache->all_layers_bytes()));
  result.Set("handle", wrap(env, std::move(cache), bytes));
  return result;
}

Napi::Value copy_kv_block(const Napi::CallbackInfo& info) {
  unwrap<KvCache>(info[0])->copy_block(info[1].As<Napi::Number>().Int32Value(),
                                       info[2].As<Napi::Number>().Int32Value());
  return info.Env().Undefined();
}

Napi::Value read_kv_block(const Napi::CallbackInfo& info) {
  const auto& cache = unwrap<KvCache>(info[0]);
  auto bytes = Napi::Uint8Array::New(info.Env(), cache->all_layers_bytes());
  cache->read_block(info[1].As<Napi::Number>().Int32Value(), reinterpret_cast<std::byte*>(bytes.Data()));
  return bytes;
}

Napi::Value write_kv_block(const Napi::CallbackInfo& info) {
  const auto bytes = info[2].As<Napi::Uint8Array>();
  unwrap<KvCache>(info[0])->write_block(info[1].As<Napi::Number>().Int32Value(),
                                        reinterpret_cast<const std::byte*>(bytes.Data()));
  return info.Env().Undefined();
}

}  // namespace niwaki::node
