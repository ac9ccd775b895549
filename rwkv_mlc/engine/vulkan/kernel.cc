#include "kernel.h"

#include <sstream>
#include <unordered_map>

#include "device.h"
#include "result.h"

namespace rwkv_mlc::vulkan {

namespace {

// Numbers of the SPIR-V specification.
constexpr size_t kHeaderWords = 5;
constexpr uint32_t kOpExecutionMode = 16;
constexpr uint32_t kOpCapability = 17;
constexpr uint32_t kOpTypeBool = 20;
constexpr uint32_t kOpTypeInt = 21;
constexpr uint32_t kOpTypeFloat = 22;
constexpr uint32_t kOpTypeVector = 23;
constexpr uint32_t kOpTypeArray = 28;
constexpr uint32_t kOpTypePointer = 32;
constexpr uint32_t kOpConstant = 43;
constexpr uint32_t kOpFunction = 54;
constexpr uint32_t kOpVariable = 59;
constexpr uint32_t kLocalSize = 17;
constexpr uint32_t kWorkgroup = 4;

/*! Counts what a block's shared arrays take, from the declarations of a shader. Structures count as nothing. */
class SharedMemory {
 public:
  void see(uint32_t opcode, const uint32_t* operands, uint32_t count) {
    auto at = [&](uint32_t i) { return i < count ? operands[i] : 0; };
    if (opcode == kOpTypeBool) sizes_[at(0)] = sizeof(uint32_t);
    if (opcode == kOpTypeInt || opcode == kOpTypeFloat) sizes_[at(0)] = at(1) / 8;
    if (opcode == kOpTypeVector) sizes_[at(0)] = sizes_[at(1)] * at(2);
    if (opcode == kOpTypeArray) sizes_[at(0)] = sizes_[at(1)] * constants_[at(2)];
    if (opcode == kOpTypePointer) sizes_[at(0)] = sizes_[at(2)];
    if (opcode == kOpConstant) constants_[at(1)] = at(2);
    if (opcode == kOpVariable && at(2) == kWorkgroup) nbytes += sizes_[at(0)];
  }
  uint64_t nbytes = 0;

 private:
  std::unordered_map<uint32_t, uint64_t> sizes_;      // of types, and of what pointer types point to
  std::unordered_map<uint32_t, uint64_t> constants_;  // the low 32 bits
};

/*! What the shader declares is held against what the device has: a driver would not say what it misses. */
void check_device(const Device& device, const KernelSource& source) {
  const VkPhysicalDeviceLimits& limits = device.properties.limits;
  auto refuse = [&](const auto&... reason) {
    auto message = std::ostringstream();
    (message << ... << reason);
    TVM_FFI_THROW(RuntimeError) << device.name() << " cannot run the kernel " << source.name << ": " << message.str();
  };
  const std::vector<uint32_t>& code = source.code;
  SharedMemory shared;
  for (size_t at = kHeaderWords; at < code.size();) {
    const uint32_t opcode = code[at] & 0xffff, length = code[at] >> 16;
    if (length == 0 || at + length > code.size()) refuse("its SPIR-V is damaged");
    if (opcode == kOpFunction) break;
    shared.see(opcode, &code[at] + 1, length - 1);
    if (opcode == kOpCapability && length == 2) {
      for (const Capability& capability : device.capabilities) {
        if (capability.id == code[at + 1] && !capability.present) refuse("it lacks ", capability.name);
      }
    } else if (opcode == kOpExecutionMode && length == 6 && code[at + 2] == kLocalSize) {
      uint64_t threads = 1;
      for (int axis = 0; axis < 3; ++axis) {
        const uint32_t extent = code[at + 3 + axis], most = limits.maxComputeWorkGroupSize[axis];
        if (extent > most) refuse("it runs ", most, " threads along ", "xyz"[axis], " and not ", extent);
        threads *= extent;
      }
      if (threads > limits.maxComputeWorkGroupInvocations) {
        refuse("it runs ", limits.maxComputeWorkGroupInvocations, " threads in a block and not ", threads);
      }
    }
    at += length;
  }
  if (shared.nbytes > limits.maxComputeSharedMemorySize) {
    refuse("it has ", limits.maxComputeSharedMemorySize, " bytes of shared memory and not ", shared.nbytes);
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
