#pragma once
#include <napi.h>

#include <memory>

#include "errors.h"
#include "external_memory.h"

namespace niwaki::node {

/// What JavaScript holds of a native object: a share of it, until disposed or collected, whichever comes
/// first.
class AnyHandle {
 public:
  virtual ~AnyHandle() = default;
  virtual void release(Napi::BasicEnv env) = 0;
};

template <class T>
class Handle final : public AnyHandle {
 public:
  Handle(std::shared_ptr<T> object, int64_t bytes) : object_(std::move(object)), bytes_(bytes) {}

  const std::shared_ptr<T>& object() const { return object_; }

  void release(Napi::BasicEnv env) override {
    if (!object_) return;
    object_.reset();
    adjust_external_memory(env, -bytes_);
  }

 private:
  std::shared_ptr<T> object_;
  int64_t bytes_;  // reported to the garbage collector
};

/// Hands a share of `object` to JavaScript, and tells its garbage collector about the object's `bytes`.
template <class T>
Napi::Value wrap(Napi::Env env, std::shared_ptr<T> object, size_t bytes = 0) {
  const auto reported = static_cast<int64_t>(bytes);
  auto handle = std::make_unique<Handle<T>>(std::move(object), reported);
  auto external = Napi::External<AnyHandle>::New(env, handle.get(), [](Napi::BasicEnv env, AnyHandle* owned) {
    owned->release(env);
    delete owned;
  });
  handle.release();
  adjust_external_memory(env, reported);
  return external;
}

/// The object of a handle. Throws "disposed", or a TypeError for a value that is no handle of a T.
template <class T>
const std::shared_ptr<T>& unwrap(Napi::Value value) {
  const auto* handle =
      value.IsExternal() ? dynamic_cast<Handle<T>*>(value.As<Napi::External<AnyHandle>>().Data()) : nullptr;
  if (!handle) throw Napi::TypeError::New(value.Env(), "not a handle of this kind");
  if (!handle->object()) throw disposed(value.Env());
  return handle->object();
}

}  // namespace niwaki::node
