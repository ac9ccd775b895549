#include "device.h"

#include <tvm/ffi/error.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "result.h"
#include "stream.h"

namespace rwkv_mlc::vulkan {

namespace {

bool has_extension(VkPhysicalDevice physical, const char* name) {
  uint32_t count = 0;
  VK_CALL(vkEnumerateDeviceExtensionProperties, physical, nullptr, &count, nullptr);
  std::vector<VkExtensionProperties> extensions(count);
  VK_CALL(vkEnumerateDeviceExtensionProperties, physical, nullptr, &count, extensions.data());
  return std::any_of(extensions.begin(), extensions.end(),
                     [&](const auto& extension) { return !std::strcmp(extension.extensionName, name); });
}

/*! What kernels may need and a device may have; what it has is switched on. */
struct Features {
  explicit Features(VkPhysicalDevice physical) {
    features.pNext = &storage_16bit;
    void** next = &storage_16bit.pNext;
    auto chain = [&](auto& structure, const char* extension) {
      if (!has_extension(physical, extension)) return;
      *next = &structure;
      next = &structure.pNext;
      extensions.push_back(extension);
    };
    chain(storage_8bit, VK_KHR_8BIT_STORAGE_EXTENSION_NAME);
    chain(float16_int8, VK_KHR_SHADER_FLOAT16_INT8_EXTENSION_NAME);
    vkGetPhysicalDeviceFeatures2(physical, &features);
    const VkPhysicalDeviceFeatures all = features.features;
    features.features = {};
    features.features.shaderFloat64 = all.shaderFloat64;
    features.features.shaderInt64 = all.shaderInt64;
    features.features.shaderInt16 = all.shaderInt16;
  }
  Features(const Features&) = delete;

  VkPhysicalDeviceFeatures2 features{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2};
  VkPhysicalDevice16BitStorageFeatures storage_16bit{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES};
  VkPhysicalDevice8BitStorageFeatures storage_8bit{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_8BIT_STORAGE_FEATURES};
  VkPhysicalDeviceShaderFloat16Int8Features float16_int8{
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES};
  std::vector<const char*> extensions;
};

std::vector<Capability> list_capabilities(const Features& features, VkSubgroupFeatureFlags subgroup) {
  const VkPhysicalDeviceFeatures& core = features.features.features;
  const auto& bits16 = features.storage_16bit;
  const auto& bits8 = features.storage_8bit;
  auto supports = [&](VkSubgroupFeatureFlagBits operation) { return (subgroup & operation) != 0; };
  return {
      {9, "Float16", features.float16_int8.shaderFloat16 != 0},
      {10, "Float64", core.shaderFloat64 != 0},
      {11, "Int64", core.shaderInt64 != 0},
      {22, "Int16", core.shaderInt16 != 0},
      {39, "Int8", features.float16_int8.shaderInt8 != 0},
      {61, "GroupNonUniform", supports(VK_SUBGROUP_FEATURE_BASIC_BIT)},
      {62, "GroupNonUniformVote", supports(VK_SUBGROUP_FEATURE_VOTE_BIT)},
      {63, "GroupNonUniformArithmetic", supports(VK_SUBGROUP_FEATURE_ARITHMETIC_BIT)},
      {64, "GroupNonUniformBallot", supports(VK_SUBGROUP_FEATURE_BALLOT_BIT)},
      {65, "GroupNonUniformShuffle", supports(VK_SUBGROUP_FEATURE_SHUFFLE_BIT)},
      {66, "GroupNonUniformShuffleRelative", supports(VK_SUBGROUP_FEATURE_SHUFFLE_RELATIVE_BIT)},
      {4433, "StorageBuffer16BitAccess", bits16.storageBuffer16BitAccess != 0},
      {4434, "UniformAndStorageBuffer16BitAccess", bits16.uniformAndStorageBuffer16BitAccess != 0},
      {4435, "StoragePushConstant16", bits16.storagePushConstant16 != 0},
      {4448, "StorageBuffer8BitAccess", bits8.storageBuffer8BitAccess != 0},
      {4449, "UniformAndStorageBuffer8BitAccess", bits8.uniformAndStorageBuffer8BitAccess != 0},
      {4450, "StoragePushConstant8", bits8.storagePushConstant8 != 0},
  };
}

/*! The first family of queues that computes. */
std::optional<uint32_t> compute_queue_family(VkPhysicalDevice physical) {
  uint32_t count = 0;
  vkGetPhysicalDeviceQueueFamilyProperties(physical, &count, nullptr);
  std::vector<VkQueueFamilyProperties> families(count);
  vkGetPhysicalDeviceQueueFamilyProperties(physical, &count, families.data());
  for (uint32_t i = 0; i < count; ++i) {
    if (families[i].queueFlags & VK_QUEUE_COMPUTE_BIT) return i;
  }
  return std::nullopt;
}

int preference(VkPhysicalDeviceType type) {
  switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU:
      return 0;
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU:
      return 1;
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU:
      return 2;
    case VK_PHYSICAL_DEVICE_TYPE_CPU:
      return 3;
    default:
      return 4;
  }
}

/*! A device for Vulkan 1.1; ``device`` is null until it is first used. */
struct Found {
  VkPhysicalDevice physical;
  uint32_t queue_family;
  int preference;
  std::unique_ptr<Device> device;
};

std::vector<Found> find_devices() {
  VkApplicationInfo application{VK_STRUCTURE_TYPE_APPLICATION_INFO};
  application.pApplicationName = "rwkv_mlc";
  application.apiVersion = VK_API_VERSION_1_1;
  VkInstanceCreateInfo info{VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO};
  info.pApplicationInfo = &application;
  VkInstance instance;
  if (vkCreateInstance(&info, nullptr, &instance) != VK_SUCCESS) return {};  // no driver

  uint32_t count = 0;
  VK_CALL(vkEnumeratePhysicalDevices, instance, &count, nullptr);
  std::vector<VkPhysicalDevice> physical_devices(count);
  VK_CALL(vkEnumeratePhysicalDevices, instance, &count, physical_devices.data());
  std::vector<Found> found;
  for (VkPhysicalDevice physical : physical_devices) {
    VkPhysicalDeviceProperties properties;
    vkGetPhysicalDeviceProperties(physical, &properties);
    auto family = compute_queue_family(physical);
    if (family && properties.apiVersion >= VK_API_VERSION_1_1) {
      found.push_back({physical, *family, preference(properties.deviceType), nullptr});
    }
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const Found& a, const Found& b) { return a.preference < b.preference; });
  return found;
}

/*! They are never destroyed: tensors may outlive the end of the program. */
std::vector<Found>& devices() {
  static auto* found = new std::vector<Found>(find_devices());
  return *found;
}

}  // namespace

size_t device_count() { return devices().size(); }

Device& device_at(int index) {
  static std::mutex mutex;
  if (index < 0 || static_cast<size_t>(index) >= device_count()) {
    TVM_FFI_THROW(ValueError) << "there is no Vulkan device " << index << ": this machine has " << device_count();
  }
  Found& found = devices()[index];
  std::lock_guard<std::mutex> lock(mutex);
  if (!found.device) found.device = std::make_unique<Device>(index, found.physical, found.queue_family);
  return *found.device;
}

static thread_local int current_index = 0;

Device& current_device() { return device_at(current_index); }

void set_current_device(int index) { current_index = device_at(index).index; }

Device::Device(int index, VkPhysicalDevice physical, uint32_t queue_family)
    : index(index), physical(physical), queue_family(queue_family) {
  VkPhysicalDeviceSubgroupProperties subgroup{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES};
  VkPhysicalDeviceProperties2 all{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2};
  all.pNext = &subgroup;
  vkGetPhysicalDeviceProperties2(physical, &all);
  properties = all.properties;
  subgroup_operations = subgroup.supportedStages & VK_SHADER_STAGE_COMPUTE_BIT ? subgroup.supportedOperations : 0;
  const Features features(physical);
  capabilities = list_capabilities(features, subgroup_operations);

  const float priority = 1;
  VkDeviceQueueCreateInfo queue{VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO};
  queue.queueFamilyIndex = queue_family;
  queue.queueCount = 1;
  queue.pQueuePriorities = &priority;
  VkDeviceCreateInfo info{VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO};
  info.pNext = &features.features;
  info.queueCreateInfoCount = 1;
  info.pQueueCreateInfos = &queue;
  info.enabledExtensionCount = static_cast<uint32_t>(features.extensions.size());
  info.ppEnabledExtensionNames = features.extensions.data();
  VK_CALL(vkCreateDevice, physical, &info, nullptr, &handle);
  vkGetDeviceQueue(handle, queue_family, 0, &queue_);
  VkPipelineCacheCreateInfo cache{VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO};
  VK_CALL(vkCreatePipelineCache, handle, &cache, nullptr, &pipelines);

  const bool unified = properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU ||
                       properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
  memory = std::make_unique<MemoryPool>(physical, handle, unified);
  default_stream_ = std::make_unique<Stream>(*this);
}

const char* Device::kind() const {
  static const char* const names[] = {"discrete", "integrated", "virtual", "cpu", "other"};
  return names[preference(properties.deviceType)];
}

bool Device::has(const std::string& capability) const {
  return std::any_of(capabilities.begin(), capabilities.end(),
                     [&](const Capability& one) { return one.present && one.name == capability; });
}

Stream* Device::create_stream() {
  std::lock_guard<std::mutex> lock(streams_mutex_);
  return *streams_.insert(new Stream(*this)).first;
}

void Device::free_stream(Stream* stream) {
  {
    std::lock_guard<std::mutex> lock(streams_mutex_);
    if (!streams_.erase(stream)) TVM_FFI_THROW(ValueError) << "this is no stream of " << name();
  }
  stream->synchronize();
  delete stream;
}

void Device::submit(const VkSubmitInfo& submission, VkFence fence) {
  std::lock_guard<std::mutex> lock(queue_mutex_);
  VK_CALL(vkQueueSubmit, queue_, 1, &submission, fence);
}

void Device::synchronize() {
  default_stream_->synchronize();
  std::lock_guard<std::mutex> lock(streams_mutex_);
  for (Stream* stream : streams_) stream->synchronize();
}

}  // namespace rwkv_mlc::vulkan
