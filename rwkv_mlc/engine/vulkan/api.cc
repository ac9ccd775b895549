// TVM's device interface, and the names under which TVM finds it.

#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include <string>
#include <vector>

#include "device.h"
#include "memory.h"
#include "module.h"
#include "stream.h"

namespace rwkv_mlc::vulkan {

namespace ffi = tvm::ffi;
namespace runtime = tvm::runtime;

namespace {

std::string version_text(uint32_t version) {
  return std::to_string(VK_VERSION_MAJOR(version)) + "." + std::to_string(VK_VERSION_MINOR(version)) + "." +
         std::to_string(VK_VERSION_PATCH(version));
}

ffi::Any target_property(DLDevice dev, const ffi::String& property) {
  Device& device = device_at(dev.device_id);
  const VkPhysicalDeviceLimits& limits = device.properties.limits;
  const std::string name = property;
  if (name == "supports_float16") return device.has("Float16");
  if (name == "supports_float32" || name == "supports_int32") return true;
  if (name == "supports_float64") return device.has("Float64");
  if (name == "supports_int8") return device.has("Int8");
  if (name == "supports_int16") return device.has("Int16");
  if (name == "supports_int64") return device.has("Int64");
  if (name == "supports_8bit_buffer") return device.has("StorageBuffer8BitAccess");
  if (name == "supports_16bit_buffer") return device.has("StorageBuffer16BitAccess");
  if (name == "supports_storage_buffer_storage_class") return true;  // part of Vulkan 1.1
  if (name == "supported_subgroup_operations") return static_cast<int64_t>(device.subgroup_operations);
  if (name == "max_num_threads") return static_cast<int64_t>(limits.maxComputeWorkGroupInvocations);
  if (name == "thread_warp_size") return int64_t{1};  // subgroups are of any size
  if (name == "max_block_size_x") return static_cast<int64_t>(limits.maxComputeWorkGroupSize[0]);
  if (name == "max_block_size_y") return static_cast<int64_t>(limits.maxComputeWorkGroupSize[1]);
  if (name == "max_block_size_z") return static_cast<int64_t>(limits.maxComputeWorkGroupSize[2]);
  if (name == "max_grid_size_x") return static_cast<int64_t>(limits.maxComputeWorkGroupCount[0]);
  if (name == "max_grid_size_y") return static_cast<int64_t>(limits.maxComputeWorkGroupCount[1]);
  if (name == "max_grid_size_z") return static_cast<int64_t>(limits.maxComputeWorkGroupCount[2]);
  if (name == "max_push_constants_size") return static_cast<int64_t>(limits.maxPushConstantsSize);
  if (name == "max_uniform_buffer_range") return static_cast<int64_t>(limits.maxUniformBufferRange);
  if (name == "max_storage_buffer_range") return static_cast<int64_t>(limits.maxStorageBufferRange);
  if (name == "max_per_stage_descriptor_storage_buffer") {
    return static_cast<int64_t>(limits.maxPerStageDescriptorStorageBuffers);
  }
  if (name == "max_shared_memory_per_block") return static_cast<int64_t>(limits.maxComputeSharedMemorySize);
  if (name == "device_name") return ffi::String(device.name());
  if (name == "device_type") return ffi::String(device.kind());
  if (name == "vulkan_api_version") return static_cast<int64_t>(device.properties.apiVersion);
  return nullptr;
}

ffi::Any attribute(DLDevice dev, runtime::DeviceAttrKind kind) {
  if (kind == runtime::kExist) {
    return static_cast<int64_t>(dev.device_id >= 0 && static_cast<size_t>(dev.device_id) < device_count());
  }
  Device& device = device_at(dev.device_id);
  const VkPhysicalDeviceLimits& limits = device.properties.limits;
  switch (kind) {
    case runtime::kMaxThreadsPerBlock:
      return static_cast<int64_t>(limits.maxComputeWorkGroupInvocations);
    case runtime::kWarpSize:
      return int64_t{1};
    case runtime::kMaxSharedMemoryPerBlock:
      return static_cast<int64_t>(limits.maxComputeSharedMemorySize);
    case runtime::kComputeVersion:
      return ffi::String(version_text(device.properties.apiVersion));
    case runtime::kDeviceName:
      return ffi::String(device.name());
    case runtime::kMaxThreadDimensions: {
      const uint32_t* size = limits.maxComputeWorkGroupSize;
      return ffi::String("[" + std::to_string(size[0]) + ", " + std::to_string(size[1]) + ", " +
                         std::to_string(size[2]) + "]");
    }
    case runtime::kApiVersion:
      return static_cast<int64_t>(VK_HEADER_VERSION);
    case runtime::kDriverVersion:
      return ffi::String(version_text(device.properties.driverVersion));
    case runtime::kTotalGlobalMemory:
      return static_cast<int64_t>(device.memory->total());
    default:
      return nullptr;
  }
}

class VulkanDeviceAPI final : public runtime::DeviceAPI {
 public:
  void SetDevice(DLDevice dev) final { set_current_device(dev.device_id); }

  void GetAttr(DLDevice dev, runtime::DeviceAttrKind kind, ffi::Any* result) final { *result = attribute(dev, kind); }

  void GetTargetProperty(DLDevice dev, const std::string& property, ffi::Any* result) final {
    *result = target_property(dev, property);
  }

  void* AllocDataSpace(DLDevice dev, size_t nbytes, size_t, DLDataType) final {
    auto buffer = std::make_shared<Buffer>(device_at(dev.device_id), nbytes, MemoryUse::kTensor);
    buffer->owner = buffer;
    return buffer.get();
  }

  void FreeDataSpace(DLDevice, void* data) final {
    // The buffer may end with its owner, so the owner is first moved out of it.
    auto owner = std::move(static_cast<Buffer*>(data)->owner);
  }

  TVMStreamHandle CreateStream(DLDevice dev) final { return device_at(dev.device_id).create_stream(); }

  void FreeStream(DLDevice dev, TVMStreamHandle stream) final {
    device_at(dev.device_id).free_stream(static_cast<Stream*>(stream));
  }

  void StreamSync(DLDevice dev, TVMStreamHandle stream) final { choose(dev, stream).synchronize(); }

  void SyncStreamFromTo(DLDevice dev, TVMStreamHandle source, TVMStreamHandle) final {
    choose(dev, source).submit();  // later commands of all streams wait for earlier ones that are submitted
  }

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t nbytes,
                      DLDevice dev_from, DLDevice dev_to, DLDataType, TVMStreamHandle stream) final {
    if (nbytes == 0) return;
    const bool from_here = dev_from.device_type == kDLVulkan, to_here = dev_to.device_type == kDLVulkan;
    auto* source = static_cast<Buffer*>(const_cast<void*>(from));
    auto* target = static_cast<Buffer*>(to);
    if (!from_here) {
      choose(dev_to, stream).upload(static_cast<const char*>(from) + from_offset, *target, to_offset, nbytes);
    } else if (!to_here) {
      choose(dev_from, stream).download(*source, from_offset, static_cast<char*>(to) + to_offset, nbytes);
    } else if (dev_from.device_id == dev_to.device_id) {
      choose(dev_from, stream).copy(*source, from_offset, *target, to_offset, nbytes);
    } else {
      std::vector<char> between(nbytes);
      current_stream(source->device).download(*source, from_offset, between.data(), nbytes);
      current_stream(target->device).upload(between.data(), *target, to_offset, nbytes);
    }
  }

 private:
  static Stream& choose(DLDevice dev, TVMStreamHandle stream) {
    return stream ? *static_cast<Stream*>(stream) : current_stream(device_at(dev.device_id));
  }
};

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef()
      .def("device_api.vulkan",
           []() {
             static auto* api = new VulkanDeviceAPI;
             return static_cast<void*>(static_cast<runtime::DeviceAPI*>(api));
           })
      .def("device_api.vulkan.get_target_property", target_property)
      .def("ffi.Module.load_from_bytes.vulkan",
           [](const ffi::Bytes& bytes) { return ffi::Module(ffi::make_object<Module>(std::string(bytes))); });
}

}  // namespace rwkv_mlc::vulkan
