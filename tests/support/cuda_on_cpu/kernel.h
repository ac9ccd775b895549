// What compiled kernels and the machine that runs them know of each other.
#pragma once

#include <vector_types.h>

#include <cstddef>

namespace cuda_on_cpu {

struct Parameter {
  size_t size;
  bool is_pointer;
};

struct Kernel {
  const char* name;
  void (*call)(void** arguments);  // as one thread
  const Parameter* parameters;
  size_t parameter_count;
  unsigned most_threads;  // its launch bounds
  char* shared;           // the memory of its __shared__ arrays
  size_t shared_size;
};

// Called by a kernel's threads, which they may suspend; `line` is that of the call in the source.
void synchronize_threads(int line);
void async_copy(void* shared_to, const void* from, bool inside);
void async_commit();
void async_wait(int pending);
void load_matrices(unsigned* fragments, const void* row, int line);
void multiply_matrices(float* sums, const unsigned* left, const unsigned* right, int line);
unsigned shuffled(unsigned word, unsigned source, int line);  // of thread `source` of the warp

}  // namespace cuda_on_cpu

extern "C" {
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
}
