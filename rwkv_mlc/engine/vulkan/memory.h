// Device memory in large blocks, from which buffers take their parts.
#pragma once

#include <vulkan/vulkan.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

namespace rwkv_mlc::vulkan {

class Device;

/*! What a buffer is for: a tensor that kernels use, bytes on their way to the device, or on their way back. */
enum class MemoryUse { kTensor, kUpload, kDownload };

/*! One allocation of the driver: a large buffer's own, or shared by many. */
struct Block {
  Block(VkDeviceMemory memory, VkDeviceSize size, uint32_t type, bool shared, char* host);

  /*! Reserves a part and gives its offset, or nothing where there is no room for it. */
  std::optional<VkDeviceSize> take(VkDeviceSize size, VkDeviceSize alignment);
  void give_back(VkDeviceSize offset, VkDeviceSize size);
  bool unused() const;

  VkDeviceMemory memory;
  VkDeviceSize size;
  uint32_t type;
  bool shared;
  char* host;  // where the processor reaches it, or null

 private:
  std::map<VkDeviceSize, VkDeviceSize> free_;  // offset to size; no two are adjacent
};

struct Part {
  std::list<Block>::iterator block;
  VkDeviceSize offset;
  VkDeviceSize size;
};

/*! All memory of a device. A driver may allow no more than 4096 allocations, so small buffers share blocks.
 * Thread-safe. */
class MemoryPool {
 public:
  MemoryPool(VkPhysicalDevice physical, VkDevice device, bool unified);

  /*! Gives nothing where the driver has no memory left. */
  std::optional<Part> allocate(const VkMemoryRequirements& requirements, MemoryUse use);
  void release(const Part& part);

  /*! Whether the processor reads memory of this type at its usual speed. */
  bool cached(uint32_t type) const;
  /*! How many bytes the largest heap on the device has. */
  VkDeviceSize total() const;
  /*! How many bytes all blocks have. */
  VkDeviceSize reserved();

 private:
  /*! Lists types of memory that suit a use, best first. */
  std::vector<uint32_t> memory_types(uint32_t allowed, MemoryUse use) const;
  std::optional<Part> allocate_from(uint32_t type, VkDeviceSize size, VkDeviceSize alignment);
  /*! Gives the end of ``blocks_`` where there is no memory left. */
  std::list<Block>::iterator add_block(VkDeviceSize size, uint32_t type, bool shared);

  VkDevice device_;
  bool unified_;
  VkPhysicalDeviceMemoryProperties properties_;
  std::mutex mutex_;
  std::list<Block> blocks_;
};

/*! What recorded commands use; it lives until the device has run them. */
struct Retained : std::enable_shared_from_this<Retained> {
  virtual ~Retained() = default;

  std::atomic<uint64_t> last_batch{0};  // the last batch of commands that was told to hold it
};

class Buffer final : public Retained {
 public:
  /*! Throws a RuntimeError that says how much was asked for where there is no memory left. */
  Buffer(Device& device, size_t nbytes, MemoryUse use);
  ~Buffer() final;

  /*! Whether no command that uses it may still be waiting or running. */
  bool idle() const;

  Device& device;
  const size_t nbytes;
  VkBuffer handle = VK_NULL_HANDLE;
  char* host = nullptr;             // its bytes, where the processor can reach them
  bool cached = false;              // whether it reads them at its usual speed
  std::shared_ptr<Retained> owner;  // itself, as long as TVM holds its address

 private:
  Part allocate(const VkMemoryRequirements& requirements, MemoryUse use);

  Part part_;
};

}  // namespace rwkv_mlc::vulkan
