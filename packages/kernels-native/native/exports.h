#pragma once
#include <napi.h>

// The functions that JavaScript sees; their types are in src/addon.ts. Arguments were checked there.
namespace niwaki::node {

// device.cpp
Napi::Value tiers(const Napi::CallbackInfo& info);        // () => string[]
Napi::Value open_device(const Napi::CallbackInfo& info);  // (threads, tier) => { handle, threads, tier }
Napi::Value cuda_gpus(
    const Napi::CallbackInfo& info);  // (path) => { name, major, minor, memory, freeMemory, usable }[]
Napi::Value open_cuda_device(const Napi::CallbackInfo& info);  // (path, gpu) => { handle, threads, tier }
Napi::Value cuda_bounds(const Napi::CallbackInfo& info);  // (path, gpu) => { bytesPerSecond, flopsPerSecond }
Napi::Value cancel_job(const Napi::CallbackInfo& info);   // (job) => void
Napi::Value finish_job(const Napi::CallbackInfo& info);   // (job) => void
Napi::Value dispose(const Napi::CallbackInfo& info);      // (handle) => void

// mapped_file.cpp
Napi::Value open_file(const Napi::CallbackInfo& info);  // (path) => { handle, byteLength }

// matrix.cpp
Napi::Value load_matrix(const Napi::CallbackInfo& info);  // (device, columns, sources, callback) => job
Napi::Value load_vector(const Napi::CallbackInfo& info);  // (source, columns) => handle

// kv_cache.cpp
Napi::Value create_kv_cache(
    const Napi::CallbackInfo& info);  // (device, shape) => { handle, byteLength, blockByteLength }
Napi::Value copy_kv_block(const Napi::CallbackInfo& info);   // (cache, from, to) => void
Napi::Value read_kv_block(const Napi::CallbackInfo& info);   // (cache, block) => Uint8Array
Napi::Value write_kv_block(const Napi::CallbackInfo& info);  // (cache, block, bytes) => void

// plan.cpp
Napi::Value compile_plan(const Napi::CallbackInfo& info);  // (device, spec) => { handle, byteLength }

// adapter.cpp
Napi::Value create_adapter_slots(
    const Napi::CallbackInfo& info);  // (device, plan, slots, maxRank, type, targets, callback) => job
Napi::Value load_adapter(const Napi::CallbackInfo& info);  // (device, slots, slot, targets, callback) => job
Napi::Value adapter_row_norms(const Napi::CallbackInfo& info);  // (device, slots, target, callback) => job

// step.cpp
Napi::Value run_plan(
    const Napi::CallbackInfo& info);  // (device, plan, tokens, sequences, outputs, samples, adapters,
                                      //  adapterSlots, logits, following, samplesWithin, onSamples,
                                      //  callback) => job

// training.cpp
Napi::Value compile_training(
    const Napi::CallbackInfo& info);  // (device, spec) => { handle, byteLength, parameters }
Napi::Value accumulate_gradients(const Napi::CallbackInfo& info);  // (device, plan, tokens, sequences,
                                                                   // outputs, targets, weights, callback)
                                                                   // => job
Napi::Value update_parameters(const Napi::CallbackInfo& info);     // (device, plan, options, callback) => job
Napi::Value read_training(const Napi::CallbackInfo& info);         // (device, plan, state, callback) => job
Napi::Value write_training(const Napi::CallbackInfo& info);  // (device, plan, state, values, callback) => job

}  // namespace niwaki::node
