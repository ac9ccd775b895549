#include "memory.h"

#include <algorithm>
#include <iterator>

#include "device.h"
#include "result.h"

namespace rwkv_mlc::vulkan {

constexpr VkDeviceSize kBlockBytes = 32 << 20;
constexpr VkDeviceSize kLargeBytes = kBlockBytes / 4;  // from here on a buffer has a block of its own

constexpr VkMemoryPropertyFlags kOnDevice = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT;
constexpr VkMemoryPropertyFlags kMapped = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
constexpr VkMemoryPropertyFlags kCached = VK_MEMORY_PROPERTY_HOST_CACHED_BIT;

Block::Block(VkDeviceMemory memory, VkDeviceSize size, uint32_t type, bool shared, char* host)
    : memory(memory), size(size), type(type), shared(shared), host(host), free_{{0, size}} {}

std::optional<VkDeviceSize> Block::take(VkDeviceSize size, VkDeviceSize alignment) {
  for (auto [offset, length] : free_) {
    const VkDeviceSize start = (offset + alignment - 1) / alignment * alignment;
    const VkDeviceSize end = start + size, limit = offset + length;
    if (end > limit) continue;
    free_.erase(offset);
    if (start > offset) free_[offset] = start - offset;
    if (limit > end) free_[end] = limit - end;
    return start;
  }
  return std::nullopt;
}

void Block::give_back(VkDeviceSize offset, VkDeviceSize size) {
  auto here = free_.emplace(offset, size).first;
  auto next = std::next(here);
  if (next != free_.end() && offset + size == next->first) {
    here->second += next->second;
    free_.erase(next);
  }
  if (here == free_.begin()) return;
  auto before = std::prev(here);
  if (before->first + before->second == offset) {
    before->second += here->second;
    free_.erase(here);
  }
}

bool Block::unused() const { return free_.size() == 1 && free_.begin()->second == size; }

MemoryPool::MemoryPool(VkPhysicalDevice physical, VkDevice device, bool unified) : device_(device), unified_(unified) {
  vkGetPhysicalDeviceMemoryProperties(physical, &properties_);
}

std::vector<uint32_t> MemoryPool::memory_types(uint32_t allowed, MemoryUse use) const {
  std::vector<VkMemoryPropertyFlags> wanted = {kMapped};
  if (use == MemoryUse::kDownload) wanted = {kMapped | kCached, kMapped};
  if (use == MemoryUse::kTensor) wanted = {kOnDevice};
  if (use == MemoryUse::kTensor && unified_)
    wanted = {kOnDevice | kMapped | kCached, kOnDevice | kMapped, kOnDevice, 0};
  std::vector<uint32_t> types;
  for (VkMemoryPropertyFlags flags : wanted) {
    for (uint32_t i = 0; i < properties_.memoryTypeCount; ++i) {
      const bool suits = (allowed >> i & 1) && (properties_.memoryTypes[i].propertyFlags & flags) == flags;
      if (suits && std::find(types.begin(), types.end(), i) == types.end()) types.push_back(i);
    }
  }
  return types;
}

std::optional<Part> MemoryPool::allocate(const VkMemoryRequirements& requirements, MemoryUse use) {
  const std::vector<uint32_t> types = memory_types(requirements.memoryTypeBits, use);
  std::lock_guard<std::mutex> lock(mutex_);
  for (uint32_t type : types) {
    if (auto part = allocate_from(type, requirements.size, requirements.alignment)) return part;
  }
  return std::nullopt;
}

std::optional<Part> MemoryPool::allocate_from(uint32_t type, VkDeviceSize size, VkDeviceSize alignment) {
  const bool shared = size < kLargeBytes;
  for (auto block = blocks_.begin(); shared && block != blocks_.end(); ++block) {
    if (!block->shared || block->type != type) continue;
    if (auto offset = block->take(size, alignment)) return Part{block, *offset, size};
  }
  auto block = add_block(shared ? kBlockBytes : size, type, shared);
  if (block == blocks_.end()) return std::nullopt;
  return Part{block, *block->take(size, alignment), size};
}

void MemoryPool::release(const Part& part) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (part.block->shared) {
    part.block->give_back(part.offset, part.size);
    if (!part.block->unused()) return;
    const bool another = std::any_of(blocks_.begin(), blocks_.end(), [&](const Block& block) {
      return &block != &*part.block && block.shared && block.type == part.block->type && block.unused();
    });
    if (!another) return;  // one is kept for the next buffer
  }
  vkFreeMemory(device_, part.block->memory, nullptr);
  blocks_.erase(part.block);
}

std::list<Block>::iterator MemoryPool::add_block(VkDeviceSize size, uint32_t type, bool shared) {
  VkMemoryAllocateInfo info{VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO};
  info.allocationSize = size;
  info.memoryTypeIndex = type;
  VkDeviceMemory memory;
  const VkResult result = vkAllocateMemory(device_, &info, nullptr, &memory);
  if (result == VK_ERROR_OUT_OF_DEVICE_MEMORY || result == VK_ERROR_OUT_OF_HOST_MEMORY) return blocks_.end();
  check(result, "vkAllocateMemory");
  void* host = nullptr;
  if ((properties_.memoryTypes[type].propertyFlags & kMapped) == kMapped) {
    VK_CALL(vkMapMemory, device_, memory, 0, VK_WHOLE_SIZE, 0, &host);
  }
  return blocks_.emplace(blocks_.end(), memory, size, type, shared, static_cast<char*>(host));
}

bool MemoryPool::cached(uint32_t type) const { return properties_.memoryTypes[type].propertyFlags & kCached; }

VkDeviceSize MemoryPool::total() const {
  VkDeviceSize largest = 0;
  for (uint32_t i = 0; i < properties_.memoryHeapCount; ++i) {
    const VkMemoryHeap& heap = properties_.memoryHeaps[i];
    if (heap.flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) largest = std::max(largest, heap.size);
  }
  return largest;
}

VkDeviceSize MemoryPool::reserved() {
  std::lock_guard<std::mutex> lock(mutex_);
  VkDeviceSize sum = 0;
  for (const Block& block : blocks_) sum += block.size;
  return sum;
}

Buffer::Buffer(Device& device, size_t nbytes, MemoryUse use) : device(device), nbytes(nbytes) {
  VkBufferCreateInfo info{VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO};
  info.size = std::max<size_t>((nbytes + 3) / 4 * 4, 4);  // kernels may read whole words
  info.usage = VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT;
  if (use == MemoryUse::kTensor) info.usage |= VK_BUFFER_USAGE_STORAGE_BUFFER_BIT;
  if (use == MemoryUse::kUpload) info.usage |= VK_BUFFER_USAGE_UNIFORM_BUFFER_BIT;
  VK_CALL(vkCreateBuffer, device.handle, &info, nullptr, &handle);
  try {
    VkMemoryRequirements requirements;
    vkGetBufferMemoryRequirements(device.handle, handle, &requirements);
    part_ = allocate(requirements, use);
    VK_CALL(vkBindBufferMemory, device.handle, handle, part_.block->memory, part_.offset);
  } catch (...) {
    vkDestroyBuffer(device.handle, handle, nullptr);
    throw;
  }
  if (part_.block->host) host = part_.block->host + part_.offset;
  cached = device.memory->cached(part_.block->type);
}

Part Buffer::allocate(const VkMemoryRequirements& requirements, MemoryUse use) {
  auto part = device.memory->allocate(requirements, use);
  if (!part && use == MemoryUse::kTensor) {
    // Tensors freed while commands use them come back. Not for staging memory, for which a stream is locked.
    device.synchronize();
    part = device.memory->allocate(requirements, use);
  }
  if (!part) {
    TVM_FFI_THROW(RuntimeError) << device.name() << " has no memory left for " << (nbytes >> 20)
                                << " MiB: this process "
                                << "holds " << (device.memory->reserved() >> 20) << " of "
                                << (device.memory->total() >> 20) << " MiB";
  }
  return *part;
}

Buffer::~Buffer() {
  vkDestroyBuffer(device.handle, handle, nullptr);
  device.memory->release(part_);
}

bool Buffer::idle() const {
  const bool unshared = weak_from_this().use_count() == 1;
  std::atomic_thread_fence(std::memory_order_acquire);
  return unshared;
}

}  // namespace rwkv_mlc::vulkan
