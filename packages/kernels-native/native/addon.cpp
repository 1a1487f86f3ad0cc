#include <napi.h>

#include "exports.h"
#include "jobs.h"

namespace {

using namespace niwaki::node;

Napi::Object start(Napi::Env env, Napi::Object exports) {
  JobQueue::create(env);
  const auto add = [&]<Napi::Value (*function)(const Napi::CallbackInfo&)>(const char* name) {
    exports.Set(name, Napi::Function::New<guarded<function>>(env, name));
  };
  add.operator()<tiers>("tiers");
  add.operator()<open_device>("openDevice");
  add.operator()<open_file>("openFile");
  add.operator()<load_matrix>("loadMatrix");
  add.operator()<load_vector>("loadVector");
  add.operator()<create_kv_cache>("createKvCache");
  add.operator()<compile_plan>("compilePlan");
  add.operator()<run_plan>("runPlan");
  add.operator()<cancel_job>("cancelJob");
  add.operator()<dispose>("dispose");
  return exports;
}

}  // namespace

NODE_API_MODULE(niwaki, start)
