// The runtime writes tensors into JSON as base64, which a runner never does.
#ifndef RWKV_MLC_SUPPORT_BASE64_H_
#define RWKV_MLC_SUPPORT_BASE64_H_

#include <tvm/support/io.h>

#include <stdexcept>

namespace tvm::support {

struct Base64 : Stream {
  explicit Base64(Stream*) { throw std::logic_error("this runtime has no base64"); }
  using Stream::Read;
  using Stream::Write;
  size_t Read(void*, size_t) override { return 0; }
  size_t Write(const void*, size_t) override { return 0; }
  void InitPosition() {}
  void Finish() {}
};
using Base64InStream = Base64;
using Base64OutStream = Base64;

}  // namespace tvm::support

#endif  // RWKV_MLC_SUPPORT_BASE64_H_
