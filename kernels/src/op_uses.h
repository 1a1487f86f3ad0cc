#pragma once
#include "niwaki/plan.h"

namespace niwaki {

/// The buffers that an operation of a plan reads, up to two, and the one that it writes; or kNoBuffer.
struct OpUses {
  BufferId reads[2];
  BufferId writes;
};
constexpr BufferId kNoBuffer = -1;

inline OpUses uses(const EmbedOp& op) {
  return {{kNoBuffer, kNoBuffer}, op.out};
}
inline OpUses uses(const RopeTableOp& op) {
  return {{kNoBuffer, kNoBuffer}, op.out};
}
inline OpUses uses(const RmsNormOp& op) {
  return {{op.in, kNoBuffer}, op.out};
}
inline OpUses uses(const LinearOp& op) {
  return {{op.in, op.accumulate ? op.out : kNoBuffer}, op.out};
}
inline OpUses uses(const QkNormRopeOp& op) {
  return {{op.qkv, op.rope}, op.qkv};
}
inline OpUses uses(const KvStoreOp& op) {
  return {{op.qkv, kNoBuffer}, kNoBuffer};
}
inline OpUses uses(const PagedAttentionOp& op) {
  return {{op.qkv, kNoBuffer}, op.out};
}
inline OpUses uses(const SelectOutputsOp& op) {
  return {{op.in, kNoBuffer}, op.out};
}
inline OpUses uses(const Op& op) {
  return std::visit([](const auto& o) { return uses(o); }, op);
}

}  // namespace niwaki
