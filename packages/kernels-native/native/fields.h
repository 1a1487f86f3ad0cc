#pragma once
#include <napi.h>

#include <memory>
#include <string>

#include "handle.h"
#include "niwaki/plan.h"

namespace niwaki::node {

/// The fields of a plain object, which an encoder of src/ wrote.
class Fields {
 public:
  explicit Fields(Napi::Value value) : object_(value.As<Napi::Object>()) {}

  Napi::Value get(const char* name) const { return object_.Get(name); }
  double number(const char* name) const { return get(name).As<Napi::Number>().DoubleValue(); }
  int32_t integer(const char* name) const { return get(name).As<Napi::Number>().Int32Value(); }
  bool boolean(const char* name) const { return get(name).As<Napi::Boolean>().Value(); }
  std::string string(const char* name) const { return get(name).As<Napi::String>().Utf8Value(); }
  template <class T>
  const std::shared_ptr<T>& object(const char* name) const {
    return unwrap<T>(get(name));
  }

 private:
  Napi::Object object_;
};

inline RopeSpec read_rope(const Fields& rope) {
  return {.head_dim = rope.integer("headDim"),
          .base = rope.number("base"),
          .scaling = static_cast<RopeScaling>(rope.integer("scaling")),
          .factor = rope.number("factor"),
          .original_context = rope.number("originalContext"),
          .beta_fast = rope.number("betaFast"),
          .beta_slow = rope.number("betaSlow"),
          .attention_factor = rope.number("attentionFactor")};
}

inline QkvLayout read_layout(const Fields& op) {
  return {.heads = op.integer("heads"), .kv_heads = op.integer("kvHeads"), .head_dim = op.integer("headDim")};
}

}  // namespace niwaki::node
