#include "machine.h"

#include <cstdarg>
#include <cstdio>

namespace cuda_on_cpu {

Counters counters;

namespace {
char message[1024];
}

cudaError_t fail(cudaError_t error, const char* format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(message, sizeof message, format, values);
  va_end(values);
  fprintf(stderr, "CUDA on a CPU: %s\n", message);
  return error;
}

}  // namespace cuda_on_cpu

extern "C" {
__attribute__((visibility("default"))) cuda_on_cpu::Counters* cuda_on_cpu_counters() { return &cuda_on_cpu::counters; }
__attribute__((visibility("default"))) const char* cuda_on_cpu_message() { return cuda_on_cpu::message; }
}
