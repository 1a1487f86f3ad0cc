#include "niwaki/plan.h"

#include <string>

#include "exports.h"
#include "fields.h"
#include "handle.h"
#include "niwaki/device.h"

namespace niwaki::node {
namespace {

Op read_op(const Fields& op) {
  const std::string kind = op.string("op");
  if (kind == "embed") {
    return EmbedOp{.table = op.object<const Matrix>("table"), .out = op.integer("out")};
  }
  if (kind == "ropeTable") {
    return RopeTableOp{.rope = read_rope(Fields(op.get("rope"))), .out = op.integer("out")};
  }
  if (kind == "rmsNorm") {
    return RmsNormOp{.in = op.integer("input"),
                     .weight = op.object<Vector>("weight"),
                     .out = op.integer("out"),
                     .eps = static_cast<float>(op.number("eps"))};
  }
  if (kind == "linear") {
    return LinearOp{.in = op.integer("input"),
                    .matrix = op.object<const Matrix>("matrix"),
                    .out = op.integer("out"),
                    .accumulate = op.boolean("accumulate"),
                    .activation = op.boolean("swiglu") ? Activation::kSwiglu : Activation::kNone};
  }
  if (kind == "qkNormRope") {
    return QkNormRopeOp{.qkv = op.integer("qkv"),
                        .layout = read_layout(op),
                        .q_norm = op.object<Vector>("qNorm"),
                        .k_norm = op.object<Vector>("kNorm"),
                        .rope = op.integer("rope"),
                        .eps = static_cast<float>(op.number("eps"))};
  }
  if (kind == "kvStore") {
    return KvStoreOp{.qkv = op.integer("qkv"),
                     .layout = read_layout(op),
                     .kv = op.object<KvCache>("kv"),
                     .layer = op.integer("layer")};
  }
  if (kind == "pagedAttention") {
    return PagedAttentionOp{.qkv = op.integer("qkv"),
                            .layout = read_layout(op),
                            .kv = op.object<KvCache>("kv"),
                            .layer = op.integer("layer"),
                            .out = op.integer("out")};
  }
  if (kind == "selectOutputs") {
    return SelectOutputsOp{.in = op.integer("input"), .out = op.integer("out")};
  }
  throw std::logic_error("no operation is called " + kind);
}

}  // namespace

Napi::Value compile_plan(const Napi::CallbackInfo& info) {
  const auto env = info.Env();
  const Fields from(info[1]);
  PlanSpec spec{.max_rows = from.integer("maxRows"),
                .max_outputs = from.integer("maxOutputs"),
                .vocabulary = from.integer("vocabulary"),
                .block_size = from.integer("blockSize"),
                .buffers = {},
                .ops = {},
                .logits = from.integer("logits")};
  const auto buffers = from.get("buffers").As<Napi::Array>();
  for (uint32_t i = 0; i < buffers.Length(); ++i) {
    const Napi::HandleScope scope(env);
    const Fields buffer(buffers.Get(i));
    spec.buffers.push_back({.width = buffer.integer("width"), .per_output = buffer.boolean("perOutput")});
  }
  const auto ops = from.get("ops").As<Napi::Array>();
  for (uint32_t i = 0; i < ops.Length(); ++i) {
    const Napi::HandleScope scope(env);
    const Fields op(ops.Get(i));
    spec.ops.push_back({.op = read_op(op), .label = op.string("label")});
  }

  auto plan = unwrap<Device>(info[0])->compile(std::move(spec));
  const size_t bytes = plan->bytes();
  auto result = Napi::Object::New(env);
  result.Set("byteLength", static_cast<double>(bytes));
  result.Set("handle", wrap(env, std::move(plan), bytes));
  return result;
}

}  // namespace niwaki::node
