// Runs the blocks of a launch, each thread of a block on a stack of its own.
#pragma once

#include <driver_types.h>

#include "kernel.h"

namespace cuda_on_cpu {

// cudaErrorLaunchFailure, or cudaErrorIllegalAddress for a fault; `message()` then says what was wrong.
cudaError_t run_blocks(const Kernel& kernel, void** arguments, dim3 grid, dim3 block);

}  // namespace cuda_on_cpu
