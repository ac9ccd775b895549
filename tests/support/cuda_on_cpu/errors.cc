#include "machine.h"

namespace cuda_on_cpu {

const char* error_name(cudaError_t error) {
#define NAME(error) \
  case error:       \
    return #error
  switch (error) {
    NAME(cudaSuccess);
    NAME(cudaErrorInvalidValue);
    NAME(cudaErrorMemoryAllocation);
    NAME(cudaErrorNoDevice);
    NAME(cudaErrorInvalidDevice);
    NAME(cudaErrorInvalidKernelImage);
    NAME(cudaErrorNoKernelImageForDevice);
    NAME(cudaErrorInvalidResourceHandle);
    NAME(cudaErrorIllegalState);
    NAME(cudaErrorSymbolNotFound);
    NAME(cudaErrorIllegalAddress);
    NAME(cudaErrorIllegalInstruction);
    NAME(cudaErrorLaunchOutOfResources);
    NAME(cudaErrorLaunchFailure);
    NAME(cudaErrorNotSupported);
    NAME(cudaErrorStreamCaptureUnsupported);
    NAME(cudaErrorStreamCaptureInvalidated);
    NAME(cudaErrorStreamCaptureImplicit);
    default:
      return "cudaErrorUnknown";
  }
#undef NAME
}

}  // namespace cuda_on_cpu
