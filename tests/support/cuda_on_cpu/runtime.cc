// CUDA's runtime library, as far as TVM's runtime calls it.
#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdlib>
#include <cstring>

#include "machine.h"
#include "memory.h"
#include "stream.h"

using namespace cuda_on_cpu;

struct CUevent_st {
  std::chrono::steady_clock::time_point time;
};

namespace {

cudaError_t copy(void* to, const void* from, size_t size, cudaMemcpyKind kind) {
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (size && (is_device_memory(to, size) != to_device || is_device_memory(from, size) != from_device))
    return fail(cudaErrorInvalidValue, "a copy of %zu bytes from %p to %p of kind %d", size, from, to, kind);
  memmove(to, from, size);
  return cudaSuccess;
}

}  // namespace

extern "C" {

const char* cudaGetErrorName(cudaError_t error) { return error_name(error); }

const char* cudaGetErrorString(cudaError_t error) { return error_name(error); }

cudaError_t cudaGetLastError() { return cudaSuccess; }  // every call returns its own

cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = getenv("CUDA_ON_CPU") != nullptr;
  return *count ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
      *value = 1024;
      return cudaSuccess;
    case cudaDevAttrMaxBlockDimZ:
      *value = 64;
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = 32;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = 48 << 10;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = 1;
      return cudaSuccess;
    default:
      return fail(cudaErrorInvalidValue, "attribute %d of the device", attribute);
  }
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  properties->totalGlobalMem = device_bytes;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = device_bytes;
  *free = device_bytes - counters.allocated_bytes;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** pointer, size_t size) {
  if (cudaError_t error = forbid_during_capture("allocating")) return error;
  *pointer = size ? allocate(size) : nullptr;
  return size && !*pointer ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
  if (cudaError_t error = forbid_during_capture("freeing")) return error;
  if (pointer && !release(pointer))
    return fail(cudaErrorInvalidValue, "%p was not allocated, or what is beside it is damaged", pointer);
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** pointer, size_t size) {
  if (cudaError_t error = forbid_during_capture("allocating on the host")) return error;
  *pointer = malloc(size);
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* pointer) {
  free(pointer);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind, cudaStream_t stream) {
  if (kind != cudaMemcpyDeviceToDevice)  // the host's memory is taken for pageable
    if (cudaError_t error = expect_no_capture(stream, "copying between host and device")) return error;
  return submit(stream, [=] { return copy(to, from, size, kind); });
}

cudaError_t cudaMemcpyPeerAsync(void*, int, const void*, int, size_t, cudaStream_t) {
  return fail(cudaErrorNotSupported, "copies between devices");
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new CUevent_st;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (cudaError_t error = expect_no_capture(stream, "recording an event")) return error;
  event->time = std::chrono::steady_clock::now();
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t, unsigned int) {
  return expect_no_capture(stream, "waiting for an event");
}

cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - begin->time).count();
  return cudaSuccess;
}

}  // extern "C"
