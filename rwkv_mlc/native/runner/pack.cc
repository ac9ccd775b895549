#include "pack.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdint>
#include <cstring>

#include "error.h"

namespace {

constexpr std::string_view kMark = "rwkv_mlc pack 1\n";
constexpr const char* kPackage = "; package the model again, or copy it once more.";

struct Footer {
  char mark[16];
  uint64_t size, index, index_size;
};

std::string program() {
  char path[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof path);
  if (length <= 0) throw UserError("The system does not tell where this program lies; mount /proc.");
  return std::string(path, length);
}

class File {
 public:
  explicit File(const std::string& path) : descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (descriptor_ < 0 || fstat(descriptor_, &status_)) {
      throw UserError(path + " cannot be read (" + std::strerror(errno) + ").");
    }
  }
  ~File() { ::close(descriptor_); }
  File(const File&) = delete;

  uint64_t size() const { return status_.st_size; }
  int descriptor() const { return descriptor_; }

  // Whether there is a pack at its end.
  bool read(Footer& footer) const {
    return size() >= sizeof footer &&
           pread(descriptor_, &footer, sizeof footer, size() - sizeof footer) == ssize_t(sizeof footer) &&
           std::string_view(footer.mark, sizeof footer.mark) == kMark;
  }

 private:
  int descriptor_;
  struct stat status_;
};

}  // namespace

Pack Pack::open() {
  const std::string own = program(), beside = own + ".weights";
  Footer footer;
  if (File(own).read(footer)) return open(own);
  if (access(beside.c_str(), F_OK) == 0) return open(beside);
  throw UserError("The weights are missing: they are neither at the end of " + own + ", as where it was not cut, nor in " +
                  beside + kPackage);
}

Pack Pack::open(const std::string& path) {
  const File file(path);
  Footer footer;
  if (!file.read(footer)) throw UserError(path + " was cut, or holds no weights" + kPackage);
  const uint64_t page = sysconf(_SC_PAGESIZE), inner = footer.size - sizeof footer;
  const bool fits = footer.size > sizeof footer && footer.size <= file.size() && (file.size() - footer.size) % page == 0 &&
                    footer.index <= inner && footer.index_size <= inner - footer.index;
  if (!fits) throw UserError(path + " is damaged" + kPackage);
  void* mapped = mmap(nullptr, footer.size, PROT_READ, MAP_PRIVATE, file.descriptor(), file.size() - footer.size);
  if (mapped == MAP_FAILED) throw UserError(path + " cannot be mapped (" + std::strerror(errno) + ").");
  const std::string_view all(static_cast<const char*>(mapped), footer.size);
  return Pack(path, all, Json::parse(all.substr(footer.index, footer.index_size), "the index of " + path));
}

std::string_view Pack::bytes(const Json& place) const {
  const int64_t offset = place.at("offset").integer(), size = place.at("nbytes").integer();
  const int64_t all = mapped_.size();
  if (offset < 0 || size < 0 || offset > all || size > all - offset) throw UserError(path_ + " is damaged" + kPackage);
  return mapped_.substr(offset, size);
}
