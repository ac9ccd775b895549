#include "stream.h"

#include <tvm/ffi/extra/c_env_api.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "device.h"
#include "result.h"

namespace rwkv_mlc::vulkan {

constexpr size_t kBatchCommands = 64;  // enough to hide what a submission costs, few enough to start the device early
constexpr size_t kBatchDescriptors = 16 * kBatchCommands;
constexpr size_t kUniformBytes = 64 << 10;
constexpr size_t kStagingBytes = 4 << 20;
constexpr size_t kRunning = 8;  // batches under way, which bounds the staging memory

constexpr VkPipelineStageFlags kWork = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;
constexpr VkAccessFlags kWrites = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
constexpr VkAccessFlags kReads = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_TRANSFER_READ_BIT;

namespace {

/*! Later commands wait for earlier ones, of this batch and of all earlier batches in the device's queue. */
void barrier(VkCommandBuffer commands, VkPipelineStageFlags stages, VkAccessFlags accesses) {
  VkMemoryBarrier memory{VK_STRUCTURE_TYPE_MEMORY_BARRIER};
  memory.srcAccessMask = kWrites;
  memory.dstAccessMask = accesses;
  vkCmdPipelineBarrier(commands, kWork, stages, 0, 1, &memory, 0, nullptr, 0, nullptr);
}

void retain(Batch& batch, Retained& object) {
  if (object.last_batch.exchange(batch.serial, std::memory_order_relaxed) != batch.serial) {
    batch.retained.push_back(object.shared_from_this());
  }
}

size_t align(size_t size, size_t alignment) { return (size + alignment - 1) / alignment * alignment; }

}  // namespace

Batch::Batch(Device& device) : device(device) {
  VkCommandPoolCreateInfo pool_info{VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO};
  pool_info.queueFamilyIndex = device.queue_family;
  VK_CALL(vkCreateCommandPool, device.handle, &pool_info, nullptr, &pool);
  VkCommandBufferAllocateInfo commands_info{VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO};
  commands_info.commandPool = pool;
  commands_info.commandBufferCount = 1;
  VK_CALL(vkAllocateCommandBuffers, device.handle, &commands_info, &commands);
  const VkDescriptorPoolSize sizes[] = {{VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, kBatchDescriptors},
                                        {VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER, kBatchCommands}};
  VkDescriptorPoolCreateInfo descriptors_info{VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO};
  descriptors_info.maxSets = kBatchCommands;
  descriptors_info.poolSizeCount = 2;
  descriptors_info.pPoolSizes = sizes;
  VK_CALL(vkCreateDescriptorPool, device.handle, &descriptors_info, nullptr, &descriptors);
  VkFenceCreateInfo fence_info{VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
  VK_CALL(vkCreateFence, device.handle, &fence_info, nullptr, &fence);
}

Batch::~Batch() {
  vkDestroyFence(device.handle, fence, nullptr);
  vkDestroyDescriptorPool(device.handle, descriptors, nullptr);
  vkDestroyCommandPool(device.handle, pool, nullptr);
}

Batch& Stream::open(size_t num_descriptors, size_t uniform_bytes) {
  if (recording_ && (recording_->num_descriptors + num_descriptors > kBatchDescriptors ||
                     recording_->uniform_bytes + uniform_bytes > kUniformBytes)) {
    submit_locked();
  }
  if (recording_) return *recording_;
  reap(kRunning);
  std::unique_ptr<Batch> batch;
  if (spare_.empty()) {
    batch = std::make_unique<Batch>(device_);
  } else {
    batch = std::move(spare_.back());
    spare_.pop_back();
  }
  VkCommandBufferBeginInfo info{VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
  info.flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT;
  VK_CALL(vkBeginCommandBuffer, batch->commands, &info);
  static std::atomic<uint64_t> last_serial{0};
  batch->serial = ++last_serial;
  recording_ = std::move(batch);
  return *recording_;
}

void Stream::end_command(Batch& batch) {
  if (++batch.num_commands == kBatchCommands || batch.staged_bytes >= kStagingBytes) submit_locked();
}

void Stream::launch(Kernel& kernel, const std::vector<Buffer*>& buffers, const std::vector<uint64_t>& scalars,
                    const std::array<uint32_t, 3>& grid) {
  std::lock_guard<std::mutex> lock(mutex_);
  const size_t alignment = device_.properties.limits.minUniformBufferOffsetAlignment;
  const size_t uniform_bytes = kernel.uniform ? align(scalars.size() * sizeof(uint64_t), alignment) : 0;
  Batch& batch = open(buffers.size(), uniform_bytes);

  std::vector<VkDescriptorBufferInfo> infos;
  for (Buffer* buffer : buffers) infos.push_back({buffer->handle, 0, VK_WHOLE_SIZE});
  if (kernel.uniform) {
    infos.push_back(store_uniforms(batch, scalars));
    batch.uniform_bytes += uniform_bytes;
  }
  VkDescriptorSet set = VK_NULL_HANDLE;
  if (!infos.empty()) {
    VkDescriptorSetAllocateInfo info{VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO};
    info.descriptorPool = batch.descriptors;
    info.descriptorSetCount = 1;
    info.pSetLayouts = &kernel.set_layout;
    VK_CALL(vkAllocateDescriptorSets, device_.handle, &info, &set);
    std::vector<VkWriteDescriptorSet> writes(infos.size(), {VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET});
    for (size_t i = 0; i < infos.size(); ++i) {
      writes[i].dstSet = set;
      writes[i].dstBinding = static_cast<uint32_t>(i);
      writes[i].descriptorCount = 1;
      writes[i].descriptorType =
          i < buffers.size() ? VK_DESCRIPTOR_TYPE_STORAGE_BUFFER : VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER;
      writes[i].pBufferInfo = &infos[i];
    }
    vkUpdateDescriptorSets(device_.handle, static_cast<uint32_t>(writes.size()), writes.data(), 0, nullptr);
    batch.num_descriptors += buffers.size();
  }

  barrier(batch.commands, kWork, kReads | kWrites);
  vkCmdBindPipeline(batch.commands, VK_PIPELINE_BIND_POINT_COMPUTE, kernel.pipeline);
  if (set) {
    vkCmdBindDescriptorSets(batch.commands, VK_PIPELINE_BIND_POINT_COMPUTE, kernel.layout, 0, 1, &set, 0, nullptr);
  }
  if (!kernel.uniform && !scalars.empty()) {
    vkCmdPushConstants(batch.commands, kernel.layout, VK_SHADER_STAGE_COMPUTE_BIT, 0,
                       static_cast<uint32_t>(scalars.size() * sizeof(uint64_t)), scalars.data());
  }
  vkCmdDispatch(batch.commands, grid[0], grid[1], grid[2]);
  for (Buffer* buffer : buffers) retain(batch, *buffer);
  retain(batch, kernel);
  end_command(batch);
}

VkDescriptorBufferInfo Stream::store_uniforms(Batch& batch, const std::vector<uint64_t>& scalars) {
  if (!batch.uniforms) batch.uniforms = std::make_shared<Buffer>(device_, kUniformBytes, MemoryUse::kUpload);
  const size_t nbytes = scalars.size() * sizeof(uint64_t);
  std::memcpy(batch.uniforms->host + batch.uniform_bytes, scalars.data(), nbytes);
  return {batch.uniforms->handle, batch.uniform_bytes, nbytes};
}

void Stream::copy(Buffer& from, size_t from_offset, Buffer& to, size_t to_offset, size_t nbytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  copy_locked(from, from_offset, to, to_offset, nbytes);
}

void Stream::copy_locked(Buffer& from, size_t from_offset, Buffer& to, size_t to_offset, size_t nbytes) {
  Batch& batch = open();
  barrier(batch.commands, kWork, kReads | kWrites);
  const VkBufferCopy region{from_offset, to_offset, nbytes};
  vkCmdCopyBuffer(batch.commands, from.handle, to.handle, 1, &region);
  retain(batch, from);
  retain(batch, to);
  end_command(batch);
}

void Stream::upload(const char* from, Buffer& to, size_t to_offset, size_t nbytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  reap(kRunning);
  if (to.host && to.idle()) {
    std::memcpy(to.host + to_offset, from, nbytes);
    return;
  }
  for (size_t done = 0; done < nbytes; done += kStagingBytes) {
    const size_t part = std::min(kStagingBytes, nbytes - done);
    auto staging = std::make_shared<Buffer>(device_, part, MemoryUse::kUpload);
    std::memcpy(staging->host, from + done, part);
    open().staged_bytes += part;
    copy_locked(*staging, 0, to, to_offset + done, part);
  }
}

void Stream::download(Buffer& from, size_t from_offset, char* to, size_t nbytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (from.host && from.cached) {
    if (!from.idle()) synchronize_locked();
    std::memcpy(to, from.host + from_offset, nbytes);
    return;
  }
  for (size_t done = 0; done < nbytes; done += kStagingBytes) {
    const size_t part = std::min(kStagingBytes, nbytes - done);
    auto staging = std::make_shared<Buffer>(device_, part, MemoryUse::kDownload);
    copy_locked(from, from_offset + done, *staging, 0, part);
    synchronize_locked();
    std::memcpy(to + done, staging->host, part);
  }
}

void Stream::submit() {
  std::lock_guard<std::mutex> lock(mutex_);
  submit_locked();
}

void Stream::synchronize() {
  std::lock_guard<std::mutex> lock(mutex_);
  synchronize_locked();
}

void Stream::submit_locked() {
  if (!recording_) return;
  auto batch = std::move(recording_);
  try {
    barrier(batch->commands, VK_PIPELINE_STAGE_HOST_BIT, VK_ACCESS_HOST_READ_BIT);
    VK_CALL(vkEndCommandBuffer, batch->commands);
    VkSubmitInfo info{VK_STRUCTURE_TYPE_SUBMIT_INFO};
    info.commandBufferCount = 1;
    info.pCommandBuffers = &batch->commands;
    device_.submit(info, batch->fence);
  } catch (...) {
    recycle(std::move(batch));
    throw;
  }
  running_.push_back(std::move(batch));
}

void Stream::synchronize_locked() {
  submit_locked();
  reap(0);
}

void Stream::reap(size_t running) {
  while (!running_.empty()) {
    Batch& oldest = *running_.front();
    if (running_.size() > running) {
      VK_CALL(vkWaitForFences, device_.handle, 1, &oldest.fence, VK_TRUE, UINT64_MAX);
    } else {
      const VkResult status = vkGetFenceStatus(device_.handle, oldest.fence);
      if (status == VK_NOT_READY) return;
      check(status, "vkGetFenceStatus");
    }
    auto batch = std::move(running_.front());
    running_.pop_front();
    VK_CALL(vkResetFences, device_.handle, 1, &batch->fence);
    recycle(std::move(batch));
  }
}

void Stream::recycle(std::unique_ptr<Batch> batch) {
  batch->retained.clear();
  batch->num_commands = batch->num_descriptors = batch->uniform_bytes = batch->staged_bytes = 0;
  VK_CALL(vkResetCommandPool, device_.handle, batch->pool, 0);
  VK_CALL(vkResetDescriptorPool, device_.handle, batch->descriptors, 0);
  spare_.push_back(std::move(batch));
}

Stream& current_stream(Device& device) {
  void* chosen = TVMFFIEnvGetStream(kDLVulkan, device.index);
  return chosen ? *static_cast<Stream*>(chosen) : device.default_stream();
}

}  // namespace rwkv_mlc::vulkan
