// Modules of the kind "vulkan": what a compiled library imports, kernels by name.
#pragma once

#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "kernel.h"

namespace rwkv_mlc::vulkan {

class Module final : public tvm::ffi::ModuleObj {
 public:
  /*! Reads ``bytes`` as TVM writes them: a format name; name and signature of each kernel; name and shader of each.
   *  Throws a ValueError for others. */
  explicit Module(std::string bytes);

  const char* kind() const final { return "vulkan"; }
  int GetPropertyMask() const final { return tvm::ffi::Module::kBinarySerializable | tvm::ffi::Module::kRunnable; }
  tvm::ffi::Bytes SaveToBytes() const final { return tvm::ffi::Bytes(bytes_); }
  /*! Gives a function that records the kernel in the thread's stream of its current device. */
  tvm::ffi::Optional<tvm::ffi::Function> GetFunction(const tvm::ffi::String& name) final;

 private:
  std::shared_ptr<Kernel> kernel(Device& device, const KernelSource& source);

  const std::string bytes_;
  std::map<std::string, KernelSource> sources_;
  std::mutex mutex_;
  std::map<std::pair<Device*, const KernelSource*>, std::shared_ptr<Kernel>> kernels_;
};

/*! Records a kernel with the arguments of a call. Throws an error that names the kernel where they do not fit. */
void launch(Kernel& kernel, const KernelSource& source, tvm::ffi::PackedArgs args);

}  // namespace rwkv_mlc::vulkan
