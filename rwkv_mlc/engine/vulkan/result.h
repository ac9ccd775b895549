// Errors of Vulkan calls as exceptions of TVM.
#pragma once

#include <tvm/ffi/error.h>
#include <vulkan/vulkan.h>

namespace rwkv_mlc::vulkan {

const char* result_name(VkResult result);

/*! Throws a RuntimeError with the call and the name of its result, unless that is VK_SUCCESS. */
void check(VkResult result, const char* call);

}  // namespace rwkv_mlc::vulkan

#define VK_CALL(function, ...) ::rwkv_mlc::vulkan::check(function(__VA_ARGS__), #function)
