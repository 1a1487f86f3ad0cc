#include <algorithm>
#include <cstring>

#include "cpu/rope.h"
#include "cpu/tier.h"
#include "cuda/heads.h"
#include "cuda/kv_cache.h"
#include "cuda/plan.h"
#include "niwaki/error.h"
#include "src/op_uses.h"
#include "src/plan_check.h"

namespace niwaki::cuda {
namespace {

constexpr int32_t ceil_to(int32_t n, int32_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

/// Rows that kernels are launched for when a step has so many: few sizes, so that there are few graphs, and
/// of many rows multiples of what wgmma takes.
int32_t bucket_rows(int32_t rows) {
  if (rows <= 2) return rows;
  if (rows <= kPlaneRows) return rows <= 4 ? 4 : kPlaneRows;
  return rows <= 64 ? ceil_to(rows, 16) : rows <= 256 ? ceil_to(rows, 32) : ceil_to(rows, 128);
}

bool is_sign(const MatrixRun& run) {
  return run.data == nullptr;
}

CudaKvCache& pages_of(const std::shared_ptr<KvCache>& cache) {
  auto* found = dynamic_cast<CudaKvCache*>(cache.get());
  if (found == nullptr) throw Error(ErrorCode::kInvalidArgument, "the KV cache was made by another device");
  return *found;
}

void refuse_if(const std::atomic<bool>& cancelled) {
  if (cancelled.load(std::memory_order_relaxed)) throw Error(ErrorCode::kCancelled, "the step was cancelled");
}

DeviceMemory upload_floats(std::span<const float> values) {
  DeviceMemory memory(values.size_bytes(), "the weights of a norm");
  check(cudaMemcpy(memory.at<void>(), values.data(), values.size_bytes(), cudaMemcpyHostToDevice),
        "uploading a norm");
  return memory;
}

}  // namespace

CudaPlan::CudaPlan(PlanSpec spec, Gpu gpu, std::shared_ptr<const void> owner)
    : QueuedPlan(std::move(spec), std::move(owner)),
      gpu_(gpu),
      sampler_(this->spec().max_outputs, this->spec().vocabulary) {
  bind();
  allocate();
  prepare_attention();
}

CudaPlan::~CudaPlan() {
  discard_graphs();
}

void CudaPlan::discard_graphs() {
  for (Place& place : places_) {
    for (const auto& [bucket, graph] : place.graphs) cudaGraphExecDestroy(graph);
    place.graphs.clear();
  }
}

template <class T>
const T* CudaPlan::op_at(size_t index) const {
  return index < spec().ops.size() ? std::get_if<T>(&spec().ops[index].op) : nullptr;
}

/// Whether an operation from `index` on reads a buffer before one writes it whole.
bool CudaPlan::read_later(size_t index, BufferId buffer) const {
  for (size_t i = index; i < spec().ops.size(); ++i) {
    const OpUses later = uses(spec().ops[i].op);
    if (later.reads[0] == buffer || later.reads[1] == buffer) return true;
    if (later.writes == buffer) return false;
  }
  return spec().logits == buffer;
}

/// Uploads what operations bring along, and decides which of them do the work of their neighbors.
void CudaPlan::bind() {
  const auto& ops = spec().ops;
  const auto quantizes_for = [&](size_t next, BufferId out) {
    const auto* linear = op_at<LinearOp>(next);
    if (linear == nullptr || linear->in != out) return false;
    const auto& runs = cuda_matrix(*linear->matrix).runs();
    return std::all_of(runs.begin(), runs.end(), is_sign);
  };
  for (size_t i = 0; i < ops.size(); ++i) {
    BoundOp& bound = ops_.emplace_back();
    if (const auto* op = std::get_if<EmbedOp>(&ops[i].op)) {
      cuda_matrix(*op->table);
    } else if (const auto* op = std::get_if<RopeTableOp>(&ops[i].op)) {
      const Rope rope(op->rope, ops[i].label);
      const auto& frequencies = rope.frequencies();
      bound.memory = DeviceMemory(frequencies.size() * sizeof(double), "rotary frequencies");
      check(cudaMemcpy(bound.memory.at<void>(), frequencies.data(), bound.memory.size(),
                       cudaMemcpyHostToDevice),
            "uploading frequencies");
      bound.rope_factor = rope.factor();
    } else if (const auto* op = std::get_if<RmsNormOp>(&ops[i].op)) {
      bound.memory = upload_floats(op->weight->values());
      bound.prepares = quantizes_for(i + 1, op->out);
      bound.writes_floats = !bound.prepares || read_later(i + 2, op->out);
    } else if (const auto* op = std::get_if<LinearOp>(&ops[i].op)) {
      const CudaMatrix& matrix = cuda_matrix(*op->matrix);
      const auto& runs = matrix.runs();
      if (op->activation == Activation::kSwiglu) {
        const auto& tensors = matrix.tensors();
        if (tensors.size() != 2 || tensors[0].rows != tensors[1].rows) {
          throw Error(ErrorCode::kInvalidArgument,
                      ops[i].label + ": SwiGLU takes a matrix of two tensors with equal rows");
        }
        bound.through_scratch = !runs[0].interleaved || op->accumulate;
        bound.prepares = !bound.through_scratch && matrix.rows() / 2 % kGroup == 0 &&
                         quantizes_for(i + 1, op->out) &&
                         cuda_matrix(*std::get<LinearOp>(ops[i + 1].op).matrix).runs().size() == 1;
        bound.writes_floats = !bound.prepares || read_later(i + 2, op->out);
      }
      scratch_width_ = std::max(scratch_width_, matrix.rows());
    } else if (const auto* op = std::get_if<QkNormRopeOp>(&ops[i].op)) {
      std::vector<float> both(op->q_norm->values().begin(), op->q_norm->values().end());
      both.insert(both.end(), op->k_norm->values().begin(), op->k_norm->values().end());
      bound.memory = upload_floats(both);
      const auto* store = op_at<KvStoreOp>(i + 1);
      const auto* attention = op_at<PagedAttentionOp>(i + 2);
      bound.stores_next = store != nullptr && attention != nullptr && store->qkv == op->qkv &&
                          attention->qkv == op->qkv && store->layout == op->layout &&
                          !read_later(i + 3, op->qkv);
    } else if (const auto* op = std::get_if<KvStoreOp>(&ops[i].op)) {
      pages_of(op->kv);
    } else if (const auto* op = std::get_if<PagedAttentionOp>(&ops[i].op)) {
      const KvShape& pages = pages_of(op->kv).shape();
      bound.prepares = op->layout.head_dim == kGroup && quantizes_for(i + 1, op->out) &&
                       cuda_matrix(*std::get<LinearOp>(ops[i + 1].op).matrix).runs().size() == 1;
      bound.writes_floats = !bound.prepares || read_later(i + 2, op->out);
      const int64_t context = int64_t{pages.blocks} * pages.block_size;
      const int32_t records = attention_records(op->layout, bucket_rows(spec().max_rows), context);
      if (attention_ && attention_->layout != op->layout) {
        throw Error(ErrorCode::kUnsupported,
                    ops[i].label + ": attention of heads in two ways is not supported on this device");
      }
      attention_ = AttentionShape{op->layout, records, gpu_.multiprocessors, pages.block_size, false};
    }
  }
}

void CudaPlan::lay_out() {
  size_t end = 0;
  const auto take = [&end](size_t bytes) {
    const size_t at = end;
    end += (bytes + 15) / 16 * 16;
    return at;
  };
  const auto rows = static_cast<size_t>(spec().max_rows), outputs = static_cast<size_t>(spec().max_outputs);
  layout_.tokens = take(4 * rows);
  layout_.counts = take(sizeof(StepView::Counts));
  layout_.first_bad = take(sizeof(unsigned long long));
  layout_.positions = take(4 * rows);
  layout_.sequences = take(4 * rows);
  layout_.table_begins = take(4 * rows);
  layout_.outputs = take(4 * outputs);
  end = (end + 255) / 256 * 256;
  layout_.samples = layout_.adapters = layout_.tables = layout_.items = end;  // make_room
}

void CudaPlan::allocate() {
  lay_out();
  const auto rows = static_cast<size_t>(bucket_rows(spec().max_rows)),
             outputs = static_cast<size_t>(bucket_rows(spec().max_outputs));
  const auto cleared = [this](size_t bytes, const char* what) {
    DeviceMemory memory(bytes, what);
    if (bytes > 0) check(cudaMemset(memory.at<void>(), 0, bytes), "clearing memory");
    bytes_ += bytes;
    return memory;
  };
  for (const BufferSpec& buffer : spec().buffers) {
    const auto stride = static_cast<size_t>((buffer.width + 15) / 16 * 16);
    buffers_.push_back(
        cleared((buffer.per_output ? outputs : rows) * stride * sizeof(float), "a plan's buffers"));
  }
  size_t quantized_bytes = 0;
  for (const LabeledOp& labeled : spec().ops) {
    const auto* op = std::get_if<LinearOp>(&labeled.op);
    if (op == nullptr) continue;
    for (const QuantizedLayout layout :
         {QuantizedLayout::kBits1, QuantizedLayout::kBits2, QuantizedLayout::kHalves}) {
      const size_t most = std::max(rows, outputs);
      const size_t needed = layout == QuantizedLayout::kHalves ? most : std::min<size_t>(kPlaneRows, most);
      const QuantizedBytes bytes(layout, static_cast<int64_t>(needed), op->matrix->columns());
      quantized_bytes = std::max(quantized_bytes, bytes.data + bytes.scales + bytes.sums);
    }
  }
  for (DeviceMemory& memory : quantized_) memory = cleared(quantized_bytes, "quantized activations");
  scratch_ =
      cleared(std::max(rows, outputs) * static_cast<size_t>((scratch_width_ + 15) / 16 * 16) * sizeof(float),
              "a plan's scratch");
  if (attention_) {
    attention_memory_ =
        cleared(attention_scratch_bytes(attention_->records, attention_->layout.head_dim), "attention");
    attention_scratch_ =
        attention_scratch(attention_memory_.at<void>(), attention_->records, attention_->layout.head_dim);
  }
  bytes_ += sampler_.bytes();
  cudaStream_t uploads;
  check(cudaStreamCreateWithFlags(&uploads, cudaStreamNonBlocking), "making a stream");
  uploads_.reset(uploads);
  for (Place& place : places_) {
    cudaEvent_t ended;
    check(cudaEventCreateWithFlags(&ended, cudaEventDisableTiming), "making an event");
    place.ended.reset(ended);
  }
}

FloatRows CudaPlan::buffer(BufferId id) const {
  return {buffers_[static_cast<size_t>(id)].at<float>(),
          (spec().buffers[static_cast<size_t>(id)].width + 15) / 16 * 16};
}

int32_t CudaPlan::rows_of(const Bucket& bucket, BufferId id) const {
  return per_output(id) ? bucket.outputs : bucket.rows;
}

Quantized CudaPlan::quantized(size_t which, QuantizedLayout layout, int32_t rows, int64_t columns) const {
  const QuantizedBytes bytes(layout, rows, columns);
  const DeviceMemory& memory = quantized_[which];
  return {layout, rows, memory.at<uint8_t>(), memory.at<float>(bytes.data),
          memory.at<int32_t>(bytes.data + bytes.scales)};
}

/// The forms in which a matrix needs its rows, of which there are at most two: for weights of one bit and of
/// two.
std::vector<Quantized> CudaPlan::quantized_for(const CudaMatrix& matrix, int32_t rows) const {
  std::vector<Quantized> forms;
  for (const MatrixRun& run : matrix.runs()) {
    if (!is_sign(run)) continue;
    const QuantizedLayout layout = quantized_layout(run.sign.bits, rows);
    if (std::any_of(forms.begin(), forms.end(), [&](const Quantized& form) { return form.layout == layout; }))
      continue;
    forms.push_back(quantized(forms.size(), layout, rows, matrix.columns()));
  }
  return forms;
}

/// Whether a linear operation quantizes its row itself, if it is not yet quantized.
bool CudaPlan::takes_floats(size_t index, const Bucket& bucket) const {
  const auto* op = op_at<LinearOp>(index);
  return op != nullptr && rows_of(bucket, op->in) == 1 && op->matrix->columns() <= kMostRowFloats;
}

/// Whether a norm is left to the linear operation after it: nothing else reads its row.
bool CudaPlan::norms_next(size_t index, const Bucket& bucket) const {
  return op_at<RmsNormOp>(index) != nullptr && takes_floats(index + 1, bucket) && ops_[index].prepares &&
         !ops_[index].writes_floats && !adapts(index + 1);
}

/// Whether an operation leaves its output quantized for the one after it.
bool CudaPlan::quantizes_next(size_t index, const Bucket& bucket) const {
  if (index >= ops_.size() || !ops_[index].prepares || norms_next(index, bucket)) return false;
  const auto* op = op_at<LinearOp>(index);
  // Of one row; and what it reads must not lie where it would write.
  return op == nullptr || (takes_floats(index, bucket) && !adapts(index) && !adapts(index + 1) &&
                           !quantizes_next(index - 1, bucket));
}

void CudaPlan::encode(const EmbedOp& op, size_t, const Bucket& bucket) {
  embed(view_, cuda_matrix(*op.table), buffer(op.out), bucket.rows, gpu_.stream);
}

void CudaPlan::encode(const RopeTableOp& op, size_t index, const Bucket& bucket) {
  const FloatRows out = buffer(op.out);
  launch_rope_table(view_,
                    {ops_[index].memory.at<const double>(), ops_[index].rope_factor, op.rope.head_dim,
                     out.data, out.stride},
                    bucket.rows, gpu_.stream);
}

void CudaPlan::encode(const RmsNormOp& op, size_t index, const Bucket& bucket) {
  const BoundOp& bound = ops_[index];
  const int32_t rows = rows_of(bucket, op.in);
  if (rows == 0 || norms_next(index, bucket)) return;
  const auto width = static_cast<int32_t>(op.weight->values().size());
  Preparation work{buffer(op.in),
                   width,
                   {bound.memory.at<const float>(), op.eps},
                   static_cast<int32_t>(index),
                   {},
                   0,
                   {},
                   {static_cast<int32_t>(index + 1), per_output(op.in)}};
  if (bound.writes_floats || (bound.prepares && adapts(index + 1))) work.out = buffer(op.out);
  if (bound.prepares) {
    for (const Quantized& form :
         quantized_for(cuda_matrix(*std::get<LinearOp>(spec().ops[index + 1].op).matrix), rows))
      work.quantized[work.layouts++] = form;
  }
  prepare_rows(view_, work, rows, gpu_.stream);
}

/// y = W x, run after run.
void CudaPlan::multiply(const LinearOp& op, size_t index, const Bucket& bucket, const FloatRows& out,
                        Epilogue epilogue) {
  const CudaMatrix& matrix = cuda_matrix(*op.matrix);
  const int32_t rows = rows_of(bucket, op.in);
  const bool quantized = !takes_floats(index, bucket) || quantizes_next(index - 1, bucket);
  const std::vector<Quantized> forms = quantized_for(matrix, rows);
  RowProduct row{};
  if (!quantized) {
    row.x = buffer(op.in).data;
    row.op = static_cast<int32_t>(index);
    if (norms_next(index - 1, bucket)) {
      const auto& norm = std::get<RmsNormOp>(spec().ops[index - 1].op);
      row.x = buffer(norm.in).data;
      row.norm = {ops_[index - 1].memory.at<const float>(), norm.eps};
      row.norm_op = static_cast<int32_t>(index - 1);
    }
  }
  row.out = out;
  row.epilogue = epilogue;
  if (quantizes_next(index, bucket)) {
    if (!ops_[index].writes_floats) row.out.data = nullptr;
    row.next = quantized_for(cuda_matrix(*std::get<LinearOp>(spec().ops[index + 1].op).matrix), 1)[0];
    row.next_op = static_cast<int32_t>(index + 1);
  }
  for (const MatrixRun& run : matrix.runs()) {
    if (!is_sign(run)) {
      multiply_floats(run, buffer(op.in), rows, out, epilogue, gpu_.stream);
      continue;
    }
    const QuantizedLayout layout = quantized_layout(run.sign.bits, rows);
    const Quantized& in =
        *std::find_if(forms.begin(), forms.end(), [&](const Quantized& q) { return q.layout == layout; });
    if (rows > 1) {
      multiply_sign({&run, rows, in, out, epilogue}, gpu_.multiprocessors, gpu_.stream);
    } else {
      row.run = &run;
      row.in = in;
      multiply_row(view_, row, gpu_.multiprocessors, gpu_.stream);
    }
  }
}

void CudaPlan::encode(const LinearOp& op, size_t index, const Bucket& bucket) {
  const BoundOp& bound = ops_[index];
  const CudaMatrix& matrix = cuda_matrix(*op.matrix);
  const int32_t rows = rows_of(bucket, op.in);
  if (rows == 0) return;
  if (!takes_floats(index, bucket) && !quantizes_next(index - 1, bucket)) {
    Preparation work{buffer(op.in),
                     static_cast<int32_t>(matrix.columns()),
                     {},
                     0,
                     {},
                     0,
                     {},
                     {static_cast<int32_t>(index), per_output(op.in)}};
    for (const Quantized& form : quantized_for(matrix, rows)) work.quantized[work.layouts++] = form;
    if (work.layouts > 0) prepare_rows(view_, work, rows, gpu_.stream);
  }
  const FloatRows out = buffer(op.out);
  const bool swiglu = op.activation == Activation::kSwiglu, adapted = adapts(index);
  if (!adapted && !bound.through_scratch) {
    return multiply(op, index, bucket, out,
                    swiglu          ? Epilogue::kSwiglu
                    : op.accumulate ? Epilogue::kAdd
                                    : Epilogue::kStore);
  }
  const FloatRows y{scratch_.at<float>(), (scratch_width_ + 15) / 16 * 16}, x = buffer(op.in);
  multiply(op, index, bucket, y, Epilogue::kStore);
  if (adapted) {
    slots_->project(index, rows, adapters_, x.data, x.stride, gpu_.stream);
    if (!swiglu) {
      if (!op.accumulate) copy_rows(y, static_cast<int32_t>(matrix.rows()), out, rows, gpu_.stream);
      return slots_->add(index, rows, adapters_, op.accumulate ? y.data : out.data,
                         op.accumulate ? y.stride : out.stride, out.data, out.stride, op.accumulate,
                         gpu_.stream);
    }
    slots_->add(index, rows, adapters_, y.data, y.stride, y.data, y.stride, false, gpu_.stream);
  }
  niwaki::cuda::swiglu(y, static_cast<int32_t>(matrix.rows() / 2), out, op.accumulate, rows, gpu_.stream);
}

HeadNorm CudaPlan::head_norm(const QkNormRopeOp& op, size_t index) const {
  const FloatRows rope = buffer(op.rope);
  const auto* norms = ops_[index].memory.at<const float>();
  return {norms, norms + op.layout.head_dim, rope.data, rope.stride, op.eps, static_cast<int32_t>(index)};
}

void CudaPlan::encode(const QkNormRopeOp& op, size_t index, const Bucket& bucket) {
  const FloatRows qkv = buffer(op.qkv);
  const HeadNorm norm = head_norm(op, index);
  const HeadRows heads{qkv.data, qkv.stride, op.layout};
  if (!ops_[index].stores_next) return launch_norm(view_, heads, norm, bucket.rows, gpu_.stream);
  if (bucket.fused) return;
  const auto& store = std::get<KvStoreOp>(spec().ops[index + 1].op);
  launch_norm_store(view_, heads, norm,
                    {pages_of(store.kv).pages(store.layer), static_cast<int32_t>(index + 1)}, bucket.rows,
                    gpu_.stream);
}

void CudaPlan::encode(const KvStoreOp& op, size_t index, const Bucket& bucket) {
  if (index > 0 && ops_[index - 1].stores_next) return;
  const FloatRows qkv = buffer(op.qkv);
  launch_store(view_, {qkv.data, qkv.stride, op.layout},
               {pages_of(op.kv).pages(op.layer), static_cast<int32_t>(index)}, bucket.rows, gpu_.stream);
}

void CudaPlan::encode(const PagedAttentionOp& op, size_t index, const Bucket& bucket) {
  const BoundOp& bound = ops_[index];
  const FloatRows qkv = buffer(op.qkv), out = buffer(op.out);
  Attention work{};
  work.qkv = qkv.data;
  work.qkv_stride = qkv.stride;
  work.layout = op.layout;
  work.pages = pages_of(op.kv).pages(op.layer);
  work.scratch = attention_scratch_;
  work.out_stride = out.stride;
  work.wide = bucket.wide;
  work.op = static_cast<int32_t>(index);
  work.quantize = bound.prepares;
  work.quantize_op = static_cast<int32_t>(index + 1);
  if (bucket.fused && index > 1 && ops_[index - 2].stores_next) {
    work.fused = true;
    work.norm = head_norm(std::get<QkNormRopeOp>(spec().ops[index - 2].op), index - 2);
    work.store_op = static_cast<int32_t>(index - 1);
  }
  if (bound.writes_floats || (bound.prepares && adapts(index + 1))) work.out = out.data;
  if (bound.prepares) {
    const auto& next = std::get<LinearOp>(spec().ops[index + 1].op);
    work.quantized = quantized_for(cuda_matrix(*next.matrix), bucket.rows)[0];
  }
  launch_attention(view_, work, attention_blocks(work, gpu_.multiprocessors), gpu_.stream);
}

void CudaPlan::encode(const SelectOutputsOp& op, size_t, const Bucket& bucket) {
  if (bucket.outputs == 0) return;
  select_outputs(view_, buffer(op.in), buffer(op.out),
                 static_cast<int32_t>(spec().buffers[static_cast<size_t>(op.in)].width), bucket.outputs,
                 gpu_.stream);
}

void CudaPlan::encode(const Bucket& bucket, const CudaAdapterSlots* slots) {
  slots_ = slots;
  for (size_t i = 0; i < spec().ops.size(); ++i)
    std::visit([&](const auto& op) { encode(op, i, bucket); }, spec().ops[i].op);
  slots_ = nullptr;
}

CudaPlan::Bucket CudaPlan::bucket_of(const Step& step) const {
  // More rows of a sequence than this have more units than a narrow item.
  constexpr int32_t kNarrowRows = 4;
  const bool wide = std::any_of(step.sequences.begin(), step.sequences.end(),
                                [](const StepSequence& s) { return s.row_count > kNarrowRows; });
  const bool fused = attention_ && !wide && can_fuse_heads(step, *attention_);
  const auto bucket = [](size_t count) { return count == 0 ? 0 : bucket_rows(static_cast<int32_t>(count)); };
  return {bucket(step.tokens.size()),
          bucket(step.outputs.size()),
          bucket(step.samples.size()),
          CudaSampler::kind_of(step),
          wide,
          fused};
}

size_t CudaPlan::most_item_bytes() const {
  if (!attention_) return 0;
  AttentionShape narrow = *attention_, wide = *attention_;
  wide.wide = true;
  return static_cast<size_t>(std::max({most_attention_items(narrow, spec().max_rows),
                                       most_attention_items(wide, spec().max_rows),
                                       int64_t{kMostAttentionBlocks} * gpu_.multiprocessors})) *
         sizeof(AttentionItem);
}

/// Puts all kernels of a step into the stream. The tokens chosen go to the other place.
void CudaPlan::encode_step(const Bucket& bucket, size_t place, const CudaAdapterSlots* slots) {
  const DeviceMemory& memory = places_[place].memory;
  view_ = places_[place].view;
  adapters_ = memory.at<const uint8_t>(layout_.adapters);
  encode(bucket, slots);
  if (bucket.samples == 0) return;
  const FloatRows logits = buffer(spec().logits);
  sampler_.launch(gpu_.stream, bucket.kind, bucket.samples, view_,
                  memory.at<const std::byte>(layout_.samples), logits.data, logits.stride,
                  places_[1 - place].memory.at<int32_t>(layout_.tokens));
}

cudaGraphExec_t CudaPlan::graph_of(const Bucket& bucket, size_t place) {
  auto& graphs = places_[place].graphs;
  const auto [found, is_new] = graphs.try_emplace(bucket, nullptr);
  if (!is_new) return found->second;
  try {
    check(cudaStreamBeginCapture(gpu_.stream, cudaStreamCaptureModeThreadLocal), "capturing a graph");
    cudaGraph_t graph;
    try {
      encode_step(bucket, place, nullptr);
    } catch (...) {
      if (cudaStreamEndCapture(gpu_.stream, &graph) == cudaSuccess) cudaGraphDestroy(graph);
      throw;
    }
    check(cudaStreamEndCapture(gpu_.stream, &graph), "capturing a graph");
    const cudaError_t status = cudaGraphInstantiate(&found->second, graph, 0);
    cudaGraphDestroy(graph);
    check(status, "making a graph");
  } catch (...) {
    graphs.erase(found);
    throw;
  }
  return found->second;
}

/// Makes room for a step of so many bytes where there is too little; then no graph is valid any more. There
/// always is enough for what follows a step.
void CudaPlan::make_room(size_t samples, size_t adapters, size_t tables) {
  const size_t room_of[] = {layout_.adapters - layout_.samples, layout_.tables - layout_.adapters,
                            layout_.items - layout_.tables};
  const bool made = places_[1].memory.size() > 0;
  if (made && room_of[0] >= samples && room_of[1] >= adapters && room_of[2] >= tables) return;
  discard_graphs();
  const auto aligned = [](size_t bytes) { return (bytes + 255) / 256 * 256; };
  const auto room = [&](size_t needed, size_t had) {
    return aligned(std::max({needed * 3 / 2, had, size_t{4096}}));
  };
  layout_.adapters = layout_.samples + room(samples, room_of[0]);
  layout_.tables = layout_.adapters + room(adapters, room_of[1]);
  layout_.items = layout_.tables + room(tables, room_of[2]);
  layout_.end = layout_.items + aligned(most_item_bytes());
  for (Place& place : places_) {
    bytes_ -= place.memory.size();
    place.memory = {};
  }
  for (Place& place : places_) {
    place.staging = PinnedMemory(layout_.end);
    place.memory = DeviceMemory(layout_.end, "a step");
    bytes_ += place.memory.size();
    place.view = {place.memory.at<const StepView::Counts>(layout_.counts),
                  place.memory.at<const int32_t>(layout_.tokens),
                  place.memory.at<const int32_t>(layout_.positions),
                  place.memory.at<const int32_t>(layout_.sequences),
                  place.memory.at<const int32_t>(layout_.table_begins),
                  place.memory.at<const int32_t>(layout_.tables),
                  place.memory.at<const int32_t>(layout_.outputs),
                  place.memory.at<const AttentionItem>(layout_.items),
                  place.memory.at<unsigned long long>(layout_.first_bad)};
  }
}

/// Writes a step to a place's staging memory and uploads it; one that follows without its tokens, beside the
/// step that runs.
void CudaPlan::stage(const Step& step, bool wide, size_t at, bool follows) {
  size_t tables = 0;
  for (const StepSequence& sequence : step.sequences) tables += sequence.block_table.size();
  const auto* slots = static_cast<const CudaPlanSlots*>(step.adapter_slots.get());
  const std::vector<uint8_t> adapters =
      slots == nullptr ? std::vector<uint8_t>() : slots->on_gpu().pack_step(step);
  make_room(CudaSampler::packed_bytes(step), adapters.size(), 4 * tables);
  Place& place = places_[at];
  const PinnedMemory& staging = place.staging;
  const size_t result_bytes = CudaSampler::result_bytes(step);
  if (place.results.size() < result_bytes) place.results = PinnedMemory(2 * result_bytes);

  items_.clear();
  if (attention_) {
    AttentionShape shape = *attention_;
    shape.wide = wide;
    list_attention(step, shape, items_);
  }
  *staging.at<StepView::Counts>(layout_.counts) = {
      static_cast<int32_t>(step.tokens.size()), static_cast<int32_t>(step.outputs.size()),
      static_cast<int32_t>(step.sequences.size()), static_cast<int32_t>(items_.size())};
  *staging.at<unsigned long long>(layout_.first_bad) = ~0ull;
  const auto write = [&](size_t to, const auto& values) {
    if (!values.empty()) std::memcpy(staging.at<void>(to), values.data(), values.size() * sizeof values[0]);
  };
  write(layout_.tokens, step.tokens);
  write(layout_.outputs, step.outputs);
  write(layout_.items, items_);
  write(layout_.adapters, adapters);
  auto* positions = staging.at<int32_t>(layout_.positions);
  auto* sequences = staging.at<int32_t>(layout_.sequences);
  auto* begins = staging.at<int32_t>(layout_.table_begins);
  auto* table = staging.at<int32_t>(layout_.tables);
  int32_t begin = 0;
  for (size_t s = 0; s < step.sequences.size(); ++s) {
    const StepSequence& sequence = step.sequences[s];
    begins[s] = begin;
    std::copy(sequence.block_table.begin(), sequence.block_table.end(), table + begin);
    begin += static_cast<int32_t>(sequence.block_table.size());
    for (int32_t i = 0; i < sequence.row_count; ++i) {
      *positions++ = sequence.context_length - sequence.row_count + i;
      *sequences++ = static_cast<int32_t>(s);
    }
  }
  if (!step.samples.empty()) {
    sampler_.pack(step, staging.at<std::byte>(layout_.samples), place.memory.at<std::byte>(layout_.samples),
                  place.results.at<std::byte>());
  }

  const size_t first = follows ? layout_.counts : layout_.tokens;
  const size_t last = layout_.items + items_.size() * sizeof(AttentionItem);
  const cudaStream_t stream = follows ? uploads_.get() : gpu_.stream;
  check(cudaMemcpyAsync(place.memory.at<void>(first), staging.at<void>(first), last - first,
                        cudaMemcpyHostToDevice, stream),
        "uploading a step");
  if (follows) check(cudaStreamSynchronize(stream), "uploading a step");
}

/// Puts a step into the stream. One that `follows` takes the tokens of the step before, which may still run.
void CudaPlan::begin(const Step& step, size_t at, bool follows) {
  Place& place = places_[at];
  const Bucket bucket = bucket_of(step);
  stage(step, bucket.wide, at, follows);
  const auto* slots = static_cast<const CudaPlanSlots*>(step.adapter_slots.get());
  const bool adapted =
      slots != nullptr && std::any_of(step.sequences.begin(), step.sequences.end(),
                                      [](const StepSequence& s) { return !s.adapters.empty(); });
  if (adapted) {
    encode_step(bucket, at, &slots->on_gpu());
  } else {
    check(cudaGraphLaunch(graph_of(bucket, at), gpu_.stream), "starting a step");
  }
  if (step.samples.empty()) {
    check(cudaMemcpyAsync(place.results.at<void>(), place.view.first_bad, sizeof(unsigned long long),
                          cudaMemcpyDeviceToHost, gpu_.stream),
          "reading a step's results");
  }
  check(cudaEventRecord(place.ended.get(), gpu_.stream), "starting a step");
}

/// Waits for a step that was begun. Throws kNonFinite, and what unpack() does.
StepResult CudaPlan::end(const Step& step, size_t at) {
  const PinnedMemory& results = places_[at].results;
  check(cudaEventSynchronize(places_[at].ended.get()), "running a step");
  const unsigned long long bad = *results.at<unsigned long long>();
  if (bad != ~0ull) refuse(bad, step);
  StepResult result;
  if (step.want_logits && !step.outputs.empty()) {
    const FloatRows logits = buffer(spec().logits);
    const auto width = static_cast<size_t>(spec().vocabulary) * sizeof(float);
    result.logits.resize(step.outputs.size() * static_cast<size_t>(spec().vocabulary));
    check(cudaMemcpy2DAsync(result.logits.data(), width, logits.data,
                            static_cast<size_t>(logits.stride) * sizeof(float), width, step.outputs.size(),
                            cudaMemcpyDeviceToHost, gpu_.stream),
          "reading logits");
    check(cudaStreamSynchronize(gpu_.stream), "reading logits");
  }
  result.samples = CudaSampler::unpack(step, results.at<const std::byte>(), [&](size_t i) {
    return "sample " + std::to_string(i) + " of " +
           describe_row(step, step.outputs[static_cast<size_t>(step.samples[i].output)]);
  });
  return result;
}

/// Unless told that nothing is, waits for what is under way: blocks may get other owners afterwards.
class CudaPlan::Drain {
 public:
  explicit Drain(const CudaPlan& plan) : plan_(plan) {}
  ~Drain() {
    if (is_idle) return;
    cudaStreamSynchronize(plan_.uploads_.get());
    cudaStreamSynchronize(plan_.gpu_.stream);
  }
  bool is_idle = false;

 private:
  const CudaPlan& plan_;
};

StepResult CudaPlan::run(const Step& step, const std::atomic<bool>& cancelled) {
  refuse_if(cancelled);
  Drain drain(*this);
  begin(step, 0, false);
  StepResult result = end(step, 0);
  drain.is_idle = true;
  return result;
}

void CudaPlan::run_following(Step& step, const std::atomic<bool>& cancelled,
                             const std::atomic<bool>& finished, const StepRan& ran) {
  refuse_if(cancelled);
  Drain drain(*this);
  Step next = step;
  become_following(next);
  size_t place = 0;
  begin(step, place, false);
  for (int32_t left = step.following;; --left, place = 1 - place) {
    const bool more = left > 0 && !finished.load(std::memory_order_relaxed);
    if (more && !cancelled.load(std::memory_order_relaxed)) begin(next, 1 - place, true);
    if (!ran(end(step, place), more)) {
      drain.is_idle = !more;
      return;
    }
    refuse_if(cancelled);
    become_following(step);
    become_following(next);
  }
}

std::string CudaPlan::describe_row(const Step& step, int32_t row) const {
  int32_t first = 0;
  size_t s = 0;
  while (row >= first + step.sequences[s].row_count) first += step.sequences[s++].row_count;
  const StepSequence& sequence = step.sequences[s];
  return "row " + std::to_string(row) + " (sequence " + std::to_string(s) + ", position " +
         std::to_string(sequence.context_length - sequence.row_count + row - first) + ")";
}

void CudaPlan::refuse(unsigned long long bad, const Step& step) const {
  const auto index = static_cast<size_t>(bad >> 32);
  auto row = static_cast<int32_t>(bad & 0xffffffffu);
  const char* what = "activations";
  const Op& op = spec().ops[index].op;
  if (std::holds_alternative<QkNormRopeOp>(op)) what = "queries or keys";
  if (std::holds_alternative<KvStoreOp>(op)) what = "keys or values, as float16 (up to 65504),";
  if (std::holds_alternative<PagedAttentionOp>(op)) what = "queries, as float16 (up to 65504),";
  const BufferId read = uses(op).reads[0];
  if (read != kNoBuffer && per_output(read)) row = step.outputs[static_cast<size_t>(row)];
  throw Error(ErrorCode::kNonFinite, std::string(what) + " of " + describe_row(step, row) +
                                         " are not finite at " + spec().ops[index].label);
}

std::vector<LinearTensor> CudaPlan::linear_tensors() const {
  std::vector<LinearTensor> tensors;
  for (size_t i = 0; i < spec().ops.size(); ++i) {
    const auto* op = op_at<LinearOp>(i);
    if (op == nullptr) continue;
    int64_t row = 0;
    for (const Matrix::Tensor& tensor : op->matrix->tensors()) {
      tensors.push_back({tensor.name, i, row, tensor.rows, op->matrix->columns(), per_output(op->in)});
      row += tensor.rows;
    }
  }
  return tensors;
}

std::vector<float> CudaPlan::tensor_rows(const std::string& name) const {
  for (const LinearTensor& tensor : linear_tensors()) {
    if (tensor.name != name) continue;
    const auto& op = std::get<LinearOp>(spec().ops[tensor.op].op);
    return read_rows(cuda_matrix(*op.matrix), tensor.first_row, tensor.rows, gpu_.stream);
  }
  throw Error(ErrorCode::kInvalidArgument, "adapter: the plan multiplies by no tensor called " + name);
}

CudaPlanSlots::CudaPlanSlots(std::shared_ptr<const CudaPlan> plan, AdapterSlotsSpec spec)
    : plan_(std::move(plan)),
      slots_(choose_tier("").adapters, plan_->linear_tensors(), plan_->spec().max_rows,
             plan_->spec().max_outputs, std::move(spec)) {}

std::vector<float> CudaPlanSlots::row_norms(ThreadPool& pool, const AdapterTarget& target) const {
  const std::vector<float> rows = plan_->tensor_rows(target.tensor);
  const auto shape =
      std::find(spec().targets.begin(), spec().targets.end(), target.tensor) - spec().targets.begin();
  const auto columns = static_cast<size_t>(shapes()[static_cast<size_t>(shape)].columns);
  return slots_.row_norms(pool, target, [&](int64_t row, float* weights) {
    std::memcpy(weights, rows.data() + static_cast<size_t>(row) * columns, columns * sizeof(float));
  });
}

}  // namespace niwaki::cuda
