#include "module.h"

#include <tvm/ffi/cast.h>

#include <cstring>
#include <vector>

#include "device.h"
#include "result.h"
#include "stream.h"

namespace rwkv_mlc::vulkan {

namespace ffi = tvm::ffi;

namespace {

/*! Reads little-endian numbers and texts, one after the other. */
class Reader {
 public:
  Reader(const char* data, size_t size) : at_(data), end_(data + size) {}
  explicit Reader(const std::string& data) : Reader(data.data(), data.size()) {}

  template <typename T>
  T number() {
    T value;
    std::memcpy(&value, bytes(sizeof(T)), sizeof(T));
    return value;
  }

  std::string text() {
    const uint64_t size = number<uint64_t>();
    return std::string(bytes(size), size);
  }

  std::vector<uint32_t> words() {
    const uint64_t count = number<uint64_t>();
    if (count > static_cast<size_t>(end_ - at_) / sizeof(uint32_t)) fail();
    std::vector<uint32_t> result(count);
    std::memcpy(result.data(), bytes(count * sizeof(uint32_t)), count * sizeof(uint32_t));
    return result;
  }

 private:
  const char* bytes(uint64_t count) {
    if (count > static_cast<uint64_t>(end_ - at_)) fail();
    const char* result = at_;
    at_ += count;
    return result;
  }

  [[noreturn]] void fail() {
    TVM_FFI_THROW(ValueError) << "a library's Vulkan kernels are damaged: they end too early";
    TVM_FFI_UNREACHABLE();
  }

  const char* at_;
  const char* end_;
};

int grid_axis(const std::string& tag) {
  for (int axis = 0; axis < 3; ++axis) {
    if (tag == std::string("blockIdx.") + "xyz"[axis]) return axis;
  }
  if (tag.rfind("threadIdx.", 0) == 0) return -1;  // the shader holds the block's size
  TVM_FFI_THROW(ValueError) << "a Vulkan kernel cannot be launched with " << tag;
  TVM_FFI_UNREACHABLE();
}

KernelSource read_signature(Reader& reader) {
  KernelSource source{};
  source.name = reader.text();
  for (uint64_t n = reader.number<uint64_t>(); n > 0; --n) {
    DLDataType type;
    type.code = reader.number<uint8_t>();
    type.bits = reader.number<uint8_t>();
    type.lanes = reader.number<uint16_t>();
    if (type.code == kDLOpaqueHandle) {
      if (source.num_buffers < source.arg_types.size()) {
        TVM_FFI_THROW(ValueError) << "the kernel " << source.name << " takes a tensor after a number";
      }
      ++source.num_buffers;
    }
    source.arg_types.push_back(type);
  }
  for (uint64_t n = reader.number<uint64_t>(); n > 0; --n) source.grid_axes.push_back(grid_axis(reader.text()));
  for (uint64_t n = reader.number<uint64_t>(); n > 0; --n) reader.number<int32_t>();  // tags of arguments, for CUDA
  return source;
}

/*! A number as a kernel reads it, in 8 bytes. */
uint64_t scalar(const TVMFFIAny& value, DLDataType type) {
  uint64_t bits = 0;
  if (type.code == kDLFloat && type.bits == 32) {
    const float narrow = static_cast<float>(value.v_float64);
    std::memcpy(&bits, &narrow, sizeof(narrow));
  } else {
    std::memcpy(&bits, &value.v_int64, sizeof(bits));  // integers are little-endian, doubles 8 bytes
  }
  return bits;
}

}  // namespace

Module::Module(std::string bytes) : bytes_(std::move(bytes)) {
  Reader reader(bytes_);
  reader.text();
  for (uint64_t n = reader.number<uint64_t>(); n > 0; --n) {
    std::string name = reader.text();
    sources_[name] = read_signature(reader);
  }
  for (uint64_t n = reader.number<uint64_t>(); n > 0; --n) {
    const std::string name = reader.text(), shader = reader.text();
    auto source = sources_.find(name);
    if (source == sources_.end()) TVM_FFI_THROW(ValueError) << "the Vulkan kernel " << name << " has no signature";
    Reader shader_reader(shader);
    source->second.uniform = shader_reader.number<uint32_t>() & 1;
    source->second.code = shader_reader.words();
  }
  for (const auto& [name, source] : sources_) {
    if (source.code.empty()) TVM_FFI_THROW(ValueError) << "the Vulkan kernel " << name << " has no shader";
  }
}

ffi::Optional<ffi::Function> Module::GetFunction(const ffi::String& name) {
  auto found = sources_.find(name);
  if (found == sources_.end()) return std::nullopt;
  const KernelSource& source = found->second;
  auto self = ffi::GetObjectPtr<Module>(this);
  return ffi::Function::FromPacked([self, &source](ffi::PackedArgs args, ffi::Any*) {
    launch(*self->kernel(current_device(), source), source, args);
  });
}

std::shared_ptr<Kernel> Module::kernel(Device& device, const KernelSource& source) {
  std::lock_guard<std::mutex> lock(mutex_);
  std::shared_ptr<Kernel>& kernel = kernels_[{&device, &source}];
  if (!kernel) kernel = std::make_shared<Kernel>(device, source);
  return kernel;
}

void launch(Kernel& kernel, const KernelSource& source, ffi::PackedArgs args) {
  const size_t num_args = source.arg_types.size();
  if (static_cast<size_t>(args.size()) != num_args + source.grid_axes.size()) {
    TVM_FFI_THROW(TypeError) << "the kernel " << source.name << " takes " << num_args + source.grid_axes.size()
                             << " arguments, not " << args.size();
  }
  const VkPhysicalDeviceLimits& limits = kernel.device.properties.limits;
  std::vector<Buffer*> buffers;
  for (size_t i = 0; i < source.num_buffers; ++i) {
    auto* buffer = static_cast<Buffer*>(args[i].cast<void*>());
    if (!buffer || &buffer->device != &kernel.device) {
      TVM_FFI_THROW(ValueError) << "argument " << i << " of the kernel " << source.name << " is not on "
                                << kernel.device.name();
    }
    if (buffer->nbytes > limits.maxStorageBufferRange) {
      TVM_FFI_THROW(ValueError) << kernel.device.name() << " cannot run the kernel " << source.name
                                << ": it reaches tensors of " << limits.maxStorageBufferRange << " bytes, and argument "
                                << i << " has " << buffer->nbytes;
    }
    buffers.push_back(buffer);
  }
  const auto* values = reinterpret_cast<const TVMFFIAny*>(args.data());
  std::vector<uint64_t> scalars;
  for (size_t i = source.num_buffers; i < num_args; ++i) scalars.push_back(scalar(values[i], source.arg_types[i]));
  std::array<uint32_t, 3> grid{1, 1, 1};
  for (size_t i = 0; i < source.grid_axes.size(); ++i) {
    const int axis = source.grid_axes[i];
    if (axis < 0) continue;
    const int64_t extent = values[num_args + i].v_int64;
    if (extent < 0 || extent > limits.maxComputeWorkGroupCount[axis]) {
      TVM_FFI_THROW(ValueError) << kernel.device.name() << " cannot run the kernel " << source.name << ": it launches "
                                << limits.maxComputeWorkGroupCount[axis] << " blocks along " << "xyz"[axis]
                                << " and not " << extent;
    }
    grid[axis] = static_cast<uint32_t>(extent);
  }
  if (grid[0] && grid[1] && grid[2]) current_stream(kernel.device).launch(kernel, buffers, scalars, grid);
}

}  // namespace rwkv_mlc::vulkan
