// Streams over bytes in memory, for the runtime's own sources.
#ifndef RWKV_MLC_SUPPORT_BYTES_IO_H_
#define RWKV_MLC_SUPPORT_BYTES_IO_H_

#include <tvm/ffi/string.h>
#include <tvm/support/io.h>

#include <algorithm>
#include <cstring>
#include <string>

namespace tvm::support {

class BytesInStream : public Stream {
 public:
  explicit BytesInStream(const ffi::Bytes& bytes) : data_(bytes.data()), left_(bytes.size()) {}
  using Stream::Read;
  using Stream::Write;

  size_t Read(void* data, size_t size) override {
    size = std::min(size, left_);
    if (size) std::memcpy(data, data_, size);
    data_ += size;
    left_ -= size;
    return size;
  }

  size_t Write(const void*, size_t) override { return 0; }

 private:
  const char* data_;
  size_t left_;
};

class BytesOutStream : public Stream {
 public:
  explicit BytesOutStream(std::string* bytes) : bytes_(bytes) {}
  using Stream::Read;
  using Stream::Write;

  size_t Read(void*, size_t) override { return 0; }

  size_t Write(const void* data, size_t size) override {
    bytes_->append(static_cast<const char*>(data), size);
    return size;
  }

 private:
  std::string* bytes_;
};

}  // namespace tvm::support

#endif  // RWKV_MLC_SUPPORT_BYTES_IO_H_
