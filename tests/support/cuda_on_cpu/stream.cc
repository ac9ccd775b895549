#include "stream.h"

#include "machine.h"

namespace cuda_on_cpu {

std::set<cudaStream_t> streams;

namespace {

cudaError_t spoil(cudaStream_t stream, cudaError_t error, const char* what) {
  stream->spoiled = true;
  return fail(error, "%s while a stream captures", what);
}

}  // namespace

cudaError_t check(cudaStream_t stream, const char* what) {
  if (stream == nullptr) {
    for (cudaStream_t other : streams)
      if (other->blocking && other->captured) return spoil(other, cudaErrorStreamCaptureImplicit, what);
    return cudaSuccess;
  }
  if (!streams.count(stream)) return fail(cudaErrorInvalidResourceHandle, "%s on what is no stream", what);
  return stream->spoiled ? fail(cudaErrorStreamCaptureInvalidated, "%s after a spoiled capture", what) : cudaSuccess;
}

cudaError_t submit(cudaStream_t stream, Work work) {
  if (cudaError_t error = check(stream, "work")) return error;
  if (stream == nullptr || !stream->captured) return work();
  stream->captured->works.push_back(std::move(work));
  return cudaSuccess;
}

cudaError_t forbid_during_capture(const char* what) {
  for (cudaStream_t stream : streams)
    if (stream->captured) return spoil(stream, cudaErrorStreamCaptureUnsupported, what);
  return cudaSuccess;
}

cudaError_t expect_no_capture(cudaStream_t stream, const char* what) {
  if (cudaError_t error = check(stream, what)) return error;
  return stream && stream->captured ? spoil(stream, cudaErrorStreamCaptureUnsupported, what) : cudaSuccess;
}

}  // namespace cuda_on_cpu
