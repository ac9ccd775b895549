// The launch of a kernel, with copies of its arguments.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "kernel.h"

namespace cuda_on_cpu {

class Launch {
 public:
  Launch(const Kernel& kernel, dim3 grid, dim3 block, void** arguments);

  // Fails for what no device would launch.
  cudaError_t check() const;

  // Also fails where a pointer among the arguments is none to the device's memory.
  cudaError_t run() const;

 private:
  const Kernel* kernel_;
  dim3 grid_, block_;
  std::vector<char> arguments_;
};

}  // namespace cuda_on_cpu
