#include "niwaki/device.h"

#include "exports.h"
#include "handle.h"
#include "jobs.h"

namespace niwaki::node {

Napi::Value tiers(const Napi::CallbackInfo& info) {
  const auto names = Device::tiers();
  auto array = Napi::Array::New(info.Env(), names.size());
  for (uint32_t i = 0; i < names.size(); ++i) array.Set(i, names[i]);
  return array;
}

Napi::Value open_device(const Napi::CallbackInfo& info) {
  const auto env = info.Env();
  auto device = Device::open(
      {.threads = info[0].As<Napi::Number>().Int32Value(), .tier = info[1].As<Napi::String>().Utf8Value()});
  auto result = Napi::Object::New(env);
  result.Set("threads", device->threads());
  result.Set("tier", device->tier());
  result.Set("handle", wrap(env, std::move(device)));
  return result;
}

Napi::Value cancel_job(const Napi::CallbackInfo& info) {
  JobQueue::of(info.Env())->cancel(info[0].As<Napi::Number>().Uint32Value());
  return info.Env().Undefined();
}

Napi::Value finish_job(const Napi::CallbackInfo& info) {
  JobQueue::of(info.Env())->finish(info[0].As<Napi::Number>().Uint32Value());
  return info.Env().Undefined();
}

Napi::Value dispose(const Napi::CallbackInfo& info) {
  info[0].As<Napi::External<AnyHandle>>().Data()->release(info.Env());
  return info.Env().Undefined();
}

}  // namespace niwaki::node
