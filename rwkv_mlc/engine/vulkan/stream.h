// Commands in order: recorded in batches, submitted a batch at a time, awaited only when the host wants to see results.
#pragma once

#include <vulkan/vulkan.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "kernel.h"
#include "memory.h"

namespace rwkv_mlc::vulkan {

/*! Commands that are submitted together, and what they need until the device has run them. */
struct Batch {
  explicit Batch(Device& device);
  ~Batch();

  Device& device;
  uint64_t serial = 0;  // a new one each time the batch is recorded
  VkCommandPool pool = VK_NULL_HANDLE;
  VkCommandBuffer commands = VK_NULL_HANDLE;
  VkDescriptorPool descriptors = VK_NULL_HANDLE;
  VkFence fence = VK_NULL_HANDLE;
  std::shared_ptr<Buffer> uniforms;  // numbers of kernels that read them from a buffer; null before the first
  std::vector<std::shared_ptr<Retained>> retained;
  size_t num_commands = 0;
  size_t num_descriptors = 0;
  size_t uniform_bytes = 0;
  size_t staged_bytes = 0;
};

/*! A stream of a device, for any thread. Each command sees what all earlier ones of this stream have written, and those
 * of other streams that were submitted before it was recorded. */
class Stream {
 public:
  explicit Stream(Device& device) : device_(device) {}

  void launch(Kernel& kernel, const std::vector<Buffer*>& buffers, const std::vector<uint64_t>& scalars,
              const std::array<uint32_t, 3>& grid);
  void copy(Buffer& from, size_t from_offset, Buffer& to, size_t to_offset, size_t nbytes);
  /*! On return ``from`` may be overwritten. */
  void upload(const char* from, Buffer& to, size_t to_offset, size_t nbytes);
  /*! Waits until all earlier commands have run and the bytes are here. */
  void download(Buffer& from, size_t from_offset, char* to, size_t nbytes);

  void submit();
  void synchronize();

 private:
  /*! Gives the batch to record one more command in. It has so many descriptors and bytes of uniforms left. */
  Batch& open(size_t num_descriptors = 0, size_t uniform_bytes = 0);
  void end_command(Batch& batch);
  void copy_locked(Buffer& from, size_t from_offset, Buffer& to, size_t to_offset, size_t nbytes);
  void submit_locked();
  void synchronize_locked();
  /*! Take back batches that the device is done with; wait until at most ``running`` are left. */
  void reap(size_t running);
  void recycle(std::unique_ptr<Batch> batch);
  VkDescriptorBufferInfo store_uniforms(Batch& batch, const std::vector<uint64_t>& scalars);

  Device& device_;
  std::mutex mutex_;
  std::unique_ptr<Batch> recording_;
  std::deque<std::unique_ptr<Batch>> running_;  // oldest first
  std::vector<std::unique_ptr<Batch>> spare_;
};

/*! The stream that this thread has chosen, or the device's default one. */
Stream& current_stream(Device& device);

}  // namespace rwkv_mlc::vulkan
