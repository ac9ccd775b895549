#include "threads.h"

#include <tvm/ffi/c_api.h>
#include <tvm/runtime/c_backend_api.h>

#include <cstdint>

extern "C" {

struct Environment;
using Function = int (*)(int part, Environment* environment, void* data);
void rwkv_mlc_set_threads(int count);
void rwkv_mlc_set_raise(void (*raise)(const char* kind, const char* message));
int rwkv_mlc_launch(Function function, void* data, int limit);
int rwkv_mlc_barrier(int part, Environment* environment);

int TVMBackendParallelLaunch(FTVMParallelLambda function, void* data, int limit) {
  return rwkv_mlc_launch(reinterpret_cast<Function>(function), data, limit);
}

int TVMBackendParallelBarrier(int part, TVMParallelGroupEnv* environment) {
  return rwkv_mlc_barrier(part, reinterpret_cast<Environment*>(environment));
}

}  // extern "C"

void set_threads(int count) {
  rwkv_mlc_set_raise(TVMFFIErrorSetRaisedFromCStr);
  rwkv_mlc_set_threads(count);
}
