// What all parts of the machine share: counters that tests read, and the last error in words.
#pragma once

#include <driver_types.h>

namespace cuda_on_cpu {

struct Counters {
  long long launches;  // of kernels, those of graphs too
  long long graph_launches;
  long long live_allocations;
  long long allocated_bytes;
  long long module_loads;
  long long live_graphs;
};

extern Counters counters;

// Remembers why a call fails, and prints it. Returns `error`.
cudaError_t fail(cudaError_t error, const char* format, ...) __attribute__((format(printf, 2, 3)));

const char* error_name(cudaError_t error);

}  // namespace cuda_on_cpu
