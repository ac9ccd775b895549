// Streams, which do their work at once or record it in a graph.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <set>
#include <vector>

namespace cuda_on_cpu {

using Work = std::function<cudaError_t()>;

}

struct CUgraph_st {
  std::vector<cuda_on_cpu::Work> works;
};

struct CUgraphExec_st {
  std::vector<cuda_on_cpu::Work> works;
};

struct CUstream_st {
  bool blocking;  // it and the stream 0 wait for each other
  bool spoiled = false;
  std::unique_ptr<CUgraph_st> captured{};
};

namespace cuda_on_cpu {

extern std::set<cudaStream_t> streams;

// Fails for what is no stream, and for stream 0 where one that waits for it captures.
cudaError_t check(cudaStream_t stream, const char* what);

// Does the work, or adds it to the graph that the stream captures.
cudaError_t submit(cudaStream_t stream, Work work);

// Fails, and spoils the captures under way, where `what` is not allowed during them.
cudaError_t forbid_during_capture(const char* what);

// Fails for a stream that captures, whose capture that spoils.
cudaError_t expect_no_capture(cudaStream_t stream, const char* what);

}  // namespace cuda_on_cpu
