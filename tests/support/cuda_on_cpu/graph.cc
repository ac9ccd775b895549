// Streams and graphs of CUDA's runtime library.
#include "machine.h"
#include "stream.h"

using namespace cuda_on_cpu;

extern "C" {

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags) {
  *stream = new CUstream_st{(flags & cudaStreamNonBlocking) == 0};
  streams.insert(*stream);
  return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  if (!streams.erase(stream)) return fail(cudaErrorInvalidResourceHandle, "no stream to destroy");
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return expect_no_capture(stream, "synchronizing"); }

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream == nullptr) return fail(cudaErrorStreamCaptureUnsupported, "stream 0 cannot capture");
  if (cudaError_t error = check(stream, "a capture")) return error;
  if (stream->captured) return fail(cudaErrorIllegalState, "a capture within a capture");
  stream->captured = std::make_unique<CUgraph_st>();
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (!streams.count(stream) || !stream->captured) return fail(cudaErrorIllegalState, "no capture to end");
  const auto captured = std::move(stream->captured);
  if (stream->spoiled) {
    stream->spoiled = false;
    return cudaErrorStreamCaptureInvalidated;
  }
  *graph = new CUgraph_st(*captured);
  ++counters.live_graphs;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  if (graph == nullptr) return fail(cudaErrorInvalidValue, "no graph to instantiate");
  *executable = new CUgraphExec_st{graph->works};
  ++counters.live_graphs;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  ++counters.graph_launches;
  return submit(stream, [works = executable->works] {
    for (const Work& work : works)
      if (cudaError_t error = work()) return error;
    return cudaSuccess;
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  --counters.live_graphs;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  --counters.live_graphs;
  return cudaSuccess;
}

}  // extern "C"
