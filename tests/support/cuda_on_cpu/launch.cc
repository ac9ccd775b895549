#include "launch.h"

#include <cstring>
#include <mutex>

#include "block.h"
#include "machine.h"
#include "memory.h"

namespace cuda_on_cpu {
namespace {

constexpr unsigned most_blocks = 65535;  // along y and z
constexpr unsigned most_threads = 1024;
constexpr size_t most_shared = 48 << 10;
constexpr size_t argument_alignment = 16;

size_t space(const Parameter& parameter) {
  return (parameter.size + argument_alignment - 1) / argument_alignment * argument_alignment;
}

}  // namespace

Launch::Launch(const Kernel& kernel, dim3 grid, dim3 block, void** arguments)
    : kernel_(&kernel), grid_(grid), block_(block) {
  for (size_t i = 0; i < kernel.parameter_count; ++i) {
    const size_t offset = arguments_.size();
    arguments_.resize(offset + space(kernel.parameters[i]));
    memcpy(arguments_.data() + offset, arguments[i], kernel.parameters[i].size);
  }
}

cudaError_t Launch::check() const {
  const size_t threads = size_t{block_.x} * block_.y * block_.z;
  if (!grid_.x || !grid_.y || !grid_.z || grid_.x > 0x7FFFFFFF || grid_.y > most_blocks || grid_.z > most_blocks)
    return fail(cudaErrorInvalidValue, "%s: a grid of (%u, %u, %u)", kernel_->name, grid_.x, grid_.y, grid_.z);
  if (!threads || threads > most_threads || block_.z > 64)
    return fail(cudaErrorInvalidValue, "%s: a block of (%u, %u, %u)", kernel_->name, block_.x, block_.y, block_.z);
  if (threads > kernel_->most_threads)
    return fail(cudaErrorLaunchOutOfResources, "%s: %zu threads, bound to %u", kernel_->name, threads,
                kernel_->most_threads);
  if (kernel_->shared_size > most_shared)
    return fail(cudaErrorInvalidKernelImage, "%s: %zu bytes of shared memory", kernel_->name, kernel_->shared_size);
  return cudaSuccess;
}

cudaError_t Launch::run() const {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  ++counters.launches;
  std::vector<char> copy = arguments_;
  std::vector<void*> arguments;
  size_t offset = 0;
  for (size_t i = 0; i < kernel_->parameter_count; ++i) {
    void* argument = copy.data() + offset;
    offset += space(kernel_->parameters[i]);
    arguments.push_back(argument);
    if (!kernel_->parameters[i].is_pointer) continue;
    const void* pointer = *static_cast<void**>(argument);
    if (pointer && !is_device_memory(pointer, 1))
      return fail(cudaErrorIllegalAddress, "%s: argument %zu, %p, is not in the device's memory", kernel_->name, i,
                  pointer);
  }
  return run_blocks(*kernel_, arguments.data(), grid_, block_);
}

}  // namespace cuda_on_cpu
