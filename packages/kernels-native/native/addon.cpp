#include <napi.h>

#include "errors.h"
#include "exports.h"
#include "jobs.h"

namespace niwaki::node {
namespace {

template <Napi::Value (*function)(const Napi::CallbackInfo&)>
void add(Napi::Object exports, const char* name) {
  exports.Set(name, Napi::Function::New<guarded<function>>(exports.Env(), name));
}

Napi::Object start(Napi::Env env, Napi::Object exports) {
  JobQueue::create(env);
  add<tiers>(exports, "tiers");
  add<open_device>(exports, "openDevice");
  add<cuda_gpus>(exports, "cudaGpus");
  add<open_cuda_device>(exports, "openCudaDevice");
  add<cuda_bounds>(exports, "cudaBounds");
  add<open_file>(exports, "openFile");
  add<load_matrix>(exports, "loadMatrix");
  add<load_vector>(exports, "loadVector");
  add<create_kv_cache>(exports, "createKvCache");
  add<copy_kv_block>(exports, "copyKvBlock");
  add<read_kv_block>(exports, "readKvBlock");
  add<write_kv_block>(exports, "writeKvBlock");
  add<compile_plan>(exports, "compilePlan");
  add<create_adapter_slots>(exports, "createAdapterSlots");
  add<load_adapter>(exports, "loadAdapter");
  add<adapter_row_norms>(exports, "adapterRowNorms");
  add<run_plan>(exports, "runPlan");
  add<compile_training>(exports, "compileTraining");
  add<accumulate_gradients>(exports, "accumulateGradients");
  add<update_parameters>(exports, "updateParameters");
  add<read_training>(exports, "readTraining");
  add<write_training>(exports, "writeTraining");
  add<cancel_job>(exports, "cancelJob");
  add<finish_job>(exports, "finishJob");
  add<dispose>(exports, "dispose");
  return exports;
}

}  // namespace

NODE_API_MODULE(niwaki, start)

}  // namespace niwaki::node
