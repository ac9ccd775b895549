#include "kernel.h"

#include <sstream>

#include "device.h"
#include "result.h"

namespace rwkv_mlc::vulkan {

namespace {

// Numbers of the SPIR-V specification.
constexpr size_t kHeaderWords = 5;
constexpr uint32_t kOpExecutionMode = 16;
constexpr uint32_t kOpCapability = 17;
constexpr uint32_t kOpFunction = 54;
constexpr uint32_t kLocalSize = 17;

/*! What the shader declares is held against what the device has: a driver would not say what it misses. */
void check_device(const Device& device, const KernelSource& source) {
  const VkPhysicalDeviceLimits& limits = device.properties.limits;
  auto refuse = [&](const auto&... reason) {
    auto message = std::ostringstream();
    (message << ... << reason);
    TVM_FFI_THROW(RuntimeError) << device.name() << " cannot run the kernel " << source.name << ": " << message.str();
  };
  const std::vector<uint32_t>& code = source.code;
  for (size_t at = kHeaderWords; at < code.size();) {
    const uint32_t opcode = code[at] & 0xffff, length = code[at] >> 16;
    if (length == 0 || at + length > code.size()) refuse("its SPIR-V is damaged");
    if (opcode == kOpFunction) break;
    if (opcode == kOpCapability) {
      for (const Capability& capability : device.capabilities) {
        if (capability.id == code[at + 1] && !capability.present) refuse("it lacks ", capability.name);
      }
    } else if (opcode == kOpExecutionMode && length == 6 && code[at + 2] == kLocalSize) {
      const uint64_t threads = uint64_t{code[at + 3]} * code[at + 4] * code[at + 5];
      if (threads > limits.maxComputeWorkGroupInvocations) {
        refuse("it runs ", limits.maxComputeWorkGroupInvocations, " threads in a block and not ", threads);
      }
    }
    at += length;
  }
  if (source.num_buffers > limits.maxPerStageDescriptorStorageBuffers) {
    refuse("it takes ", limits.maxPerStageDescriptorStorageBuffers, " tensors and not ", source.num_buffers);
  }
  const size_t nbytes = source.num_scalars() * sizeof(uint64_t);
  const uint32_t room = source.uniform ? limits.maxUniformBufferRange : limits.maxPushConstantsSize;
  if (nbytes > room) refuse("it takes ", room, " bytes of numbers and not ", nbytes);
}

}  // namespace

Kernel::Kernel(Device& device, const KernelSource& source) : device(device), uniform(source.uniform) {
  check_device(device, source);
  try {
    build(source);
  } catch (const tvm::ffi::Error& error) {
    destroy();
    TVM_FFI_THROW(RuntimeError) << device.name() << " cannot prepare the kernel " << source.name << ": "
                                << error.message();
  }
}

Kernel::~Kernel() { destroy(); }

void Kernel::build(const KernelSource& source) {
  std::vector<VkDescriptorSetLayoutBinding> bindings;
  for (uint32_t i = 0; i < source.num_buffers; ++i) {
    bindings.push_back({i, VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, 1, VK_SHADER_STAGE_COMPUTE_BIT, nullptr});
  }
  if (uniform) {
    const uint32_t last = static_cast<uint32_t>(source.num_buffers);
    bindings.push_back({last, VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER, 1, VK_SHADER_STAGE_COMPUTE_BIT, nullptr});
  }
  VkDescriptorSetLayoutCreateInfo set_info{VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO};
  set_info.bindingCount = static_cast<uint32_t>(bindings.size());
  set_info.pBindings = bindings.data();
  VK_CALL(vkCreateDescriptorSetLayout, device.handle, &set_info, nullptr, &set_layout);

  const VkPushConstantRange constants{VK_SHADER_STAGE_COMPUTE_BIT, 0,
                                      static_cast<uint32_t>(source.num_scalars() * sizeof(uint64_t))};
  VkPipelineLayoutCreateInfo layout_info{VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO};
  layout_info.setLayoutCount = 1;
  layout_info.pSetLayouts = &set_layout;
  layout_info.pushConstantRangeCount = !uniform && constants.size ? 1 : 0;
  layout_info.pPushConstantRanges = &constants;
  VK_CALL(vkCreatePipelineLayout, device.handle, &layout_info, nullptr, &layout);

  VkShaderModuleCreateInfo shader_info{VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO};
  shader_info.codeSize = source.code.size() * sizeof(uint32_t);
  shader_info.pCode = source.code.data();
  VkComputePipelineCreateInfo info{VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO};
  info.stage = {VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO};
  info.stage.stage = VK_SHADER_STAGE_COMPUTE_BIT;
  info.stage.pName = source.name.c_str();
  info.layout = layout;
  VK_CALL(vkCreateShaderModule, device.handle, &shader_info, nullptr, &info.stage.module);
  const VkResult result = vkCreateComputePipelines(device.handle, device.pipelines, 1, &info, nullptr, &pipeline);
  vkDestroyShaderModule(device.handle, info.stage.module, nullptr);
  check(result, "vkCreateComputePipelines");
}

void Kernel::destroy() {
  vkDestroyPipeline(device.handle, pipeline, nullptr);
  vkDestroyPipelineLayout(device.handle, layout, nullptr);
  vkDestroyDescriptorSetLayout(device.handle, set_layout, nullptr);
}

}  // namespace rwkv_mlc::vulkan
