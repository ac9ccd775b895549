// A compute shader made ready for a device.
#pragma once

#include <dlpack/dlpack.h>
#include <vulkan/vulkan.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "memory.h"

namespace rwkv_mlc::vulkan {

/*! A kernel as a library holds it. Its arguments are tensors, then numbers, then the extents of the launch. */
struct KernelSource {
  std::string name;  // also that of the entry point
  std::vector<DLDataType> arg_types;
  size_t num_buffers;
  std::vector<int> grid_axes;  // of each extent of the launch: 0 to 2 for blockIdx.x to z, -1 for others
  bool uniform;                // whether the numbers come in a uniform buffer and not as push constants
  std::vector<uint32_t> code;  // SPIR-V

  size_t num_scalars() const { return arg_types.size() - num_buffers; }
};

class Kernel final : public Retained {
 public:
  /*! Throws a RuntimeError that names the kernel and what the device lacks for it. */
  Kernel(Device& device, const KernelSource& source);
  ~Kernel() final;

  Device& device;
  const bool uniform;
  VkDescriptorSetLayout set_layout = VK_NULL_HANDLE;
  VkPipelineLayout layout = VK_NULL_HANDLE;
  VkPipeline pipeline = VK_NULL_HANDLE;

 private:
  void build(const KernelSource& source);
  void destroy();
};

}  // namespace rwkv_mlc::vulkan
