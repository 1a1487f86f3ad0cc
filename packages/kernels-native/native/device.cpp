#include "niwaki/device.h"

#include "exports.h"
#include "handle.h"
#include "jobs.h"
#include "niwaki/cuda.h"

namespace niwaki::node {
namespace {

Napi::Object describe(Napi::Env env, std::shared_ptr<Device> device) {
  auto result = Napi::Object::New(env);
  result.Set("threads", device->threads());
  result.Set("tier", device->tier());
  result.Set("handle", wrap(env, std::move(device)));
  return result;
}

CudaLibrary& cuda(const Napi::CallbackInfo& info) {
  return load_cuda_library(info[0].As<Napi::String>().Utf8Value());
}

}  // namespace

Napi::Value tiers(const Napi::CallbackInfo& info) {
  const auto names = Device::tiers();
  auto array = Napi::Array::New(info.Env(), names.size());
  for (uint32_t i = 0; i < names.size(); ++i) array.Set(i, names[i]);
  return array;
}

Napi::Value open_device(const Napi::CallbackInfo& info) {
  return describe(info.Env(), Device::open({.threads = info[0].As<Napi::Number>().Int32Value(),
                                            .tier = info[1].As<Napi::String>().Utf8Value()}));
}

Napi::Value cuda_gpus(const Napi::CallbackInfo& info) {
  const auto env = info.Env();
  const auto gpus = cuda(info).gpus();
  auto array = Napi::Array::New(env, gpus.size());
  for (uint32_t i = 0; i < gpus.size(); ++i) {
    const GpuInfo& gpu = gpus[i];
    auto object = Napi::Object::New(env);
    object.Set("name", gpu.name);
    object.Set("major", gpu.major);
    object.Set("minor", gpu.minor);
    object.Set("memory", static_cast<double>(gpu.memory));
    object.Set("freeMemory", static_cast<double>(gpu.free_memory));
    object.Set("usable", gpu.usable);
    array.Set(i, object);
  }
  return array;
}

Napi::Value open_cuda_device(const Napi::CallbackInfo& info) {
  return describe(info.Env(), cuda(info).open(info[1].As<Napi::Number>().Int32Value()));
}

Napi::Value cuda_bounds(const Napi::CallbackInfo& info) {
  const GpuBounds bounds = cuda(info).measure(info[1].As<Napi::Number>().Int32Value());
  auto result = Napi::Object::New(info.Env());
  result.Set("bytesPerSecond", bounds.bytes_per_second);
  result.Set("flopsPerSecond", bounds.flops_per_second);
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
