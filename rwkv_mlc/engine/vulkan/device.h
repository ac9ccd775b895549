// The machine's Vulkan devices, best first: GPUs before software.
#pragma once

#include <vulkan/vulkan.h>

#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "memory.h"

namespace rwkv_mlc::vulkan {

class Stream;

/*! Something that SPIR-V asks for by ``OpCapability id``. */
struct Capability {
  uint32_t id;
  const char* name;
  bool present;
};

/*! A device with its one queue; every stream of it records commands of its own. */
class Device {
 public:
  Device(int index, VkPhysicalDevice physical, uint32_t queue_family);

  std::string name() const { return properties.deviceName; }
  /*! "discrete", "integrated", "virtual", "cpu" or "other". */
  const char* kind() const;
  /*! Whether the device has a capability; false for names that are not in ``capabilities``. */
  bool has(const std::string& capability) const;

  Stream& default_stream() { return *default_stream_; }
  Stream* create_stream();
  void free_stream(Stream* stream);
  void submit(const VkSubmitInfo& submission, VkFence fence);
  /*! Wait until every stream has done all that was recorded. */
  void synchronize();

  const int index;
  const VkPhysicalDevice physical;
  const uint32_t queue_family;
  VkPhysicalDeviceProperties properties;
  VkSubgroupFeatureFlags subgroup_operations;
  std::vector<Capability> capabilities;
  VkDevice handle = VK_NULL_HANDLE;
  VkPipelineCache pipelines = VK_NULL_HANDLE;
  std::unique_ptr<MemoryPool> memory;

 private:
  VkQueue queue_;
  std::mutex queue_mutex_;
  std::mutex streams_mutex_;
  std::unique_ptr<Stream> default_stream_;
  std::set<Stream*> streams_;
};

/*! How many devices can compute; zero where there is no driver. */
size_t device_count();

/*! The device at an index below ``device_count``, which is opened at its first use. Throws a ValueError for others. */
Device& device_at(int index);

/*! The device that this thread's next kernels run on. */
Device& current_device();
void set_current_device(int index);

}  // namespace rwkv_mlc::vulkan
