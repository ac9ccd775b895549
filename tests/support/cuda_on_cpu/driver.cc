// CUDA's driver library, as far as TVM's runtime calls it. A launch's own error is what the call returns, at once.
#include <cuda.h>
#include <dlfcn.h>
#include <elf.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "launch.h"
#include "machine.h"
#include "stream.h"

using namespace cuda_on_cpu;

namespace {

// A fatbin is a header and images; u32 magic | u16 version | u16 header size | u64 size | images
// An image is                       u16 kind | u16 version | u32 header size | u64 size of the code | ... | code
constexpr uint32_t fatbin_magic = 0xBA55ED50;
struct FatbinHeader {
  uint32_t magic;
  uint16_t version, header_size;
  uint64_t size;
};
struct ImageHeader {
  uint16_t kind, version;
  uint32_t header_size;
  uint64_t size;
};

struct Image {
  const char* data = nullptr;
  size_t size = 0;
};

bool is_for_this_cpu(const Image& image) {
  const auto* elf = reinterpret_cast<const Elf64_Ehdr*>(image.data);
  return image.size > sizeof *elf && !memcmp(elf->e_ident, ELFMAG, SELFMAG) && elf->e_machine == EM_X86_64;
}

// The image for this CPU; an empty one where there is none.
Image find_image(const void* fatbin) {
  const auto* header = static_cast<const FatbinHeader*>(fatbin);
  if (header->magic != fatbin_magic) return {};
  const char* at = static_cast<const char*>(fatbin) + header->header_size;
  for (const char* end = at + header->size; at < end;) {
    const auto* image = reinterpret_cast<const ImageHeader*>(at);
    const Image found{at + image->header_size, image->size};
    if (is_for_this_cpu(found)) return found;
    at = found.data + found.size;
  }
  return {};
}

CUresult as_driver(cudaError_t error) { return static_cast<CUresult>(error); }

}  // namespace

extern "C" {

CUresult cuInit(unsigned int) { return CUDA_SUCCESS; }

CUresult cuDeviceGetCount(int* count) {
  *count = getenv("CUDA_ON_CPU") != nullptr;
  return CUDA_SUCCESS;
}

// NVRTC asks for what only NVIDIA's own libraries know.
CUresult cuGetExportTable(const void**, const CUuuid*) { return CUDA_ERROR_NOT_FOUND; }

CUresult cuDeviceGetName(char* name, int size, CUdevice) {
  snprintf(name, size, "CUDA on a CPU");
  return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char** name) {
  *name = error_name(static_cast<cudaError_t>(error));
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char** text) { return cuGetErrorName(error, text); }

CUresult cuModuleLoadData(CUmodule* module, const void* fatbin) {
  if (cudaError_t error = forbid_during_capture("loading a module")) return as_driver(error);
  const Image image = find_image(fatbin);
  if (image.data == nullptr) return as_driver(fail(cudaErrorNoKernelImageForDevice, "no image for this CPU"));
  char path[] = "/tmp/cuda_on_cpu_XXXXXX";
  const int file = mkstemp(path);
  const bool written = file >= 0 && write(file, image.data, image.size) == ssize_t(image.size);
  close(file);
  void* library = written ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
  unlink(path);
  if (library == nullptr) return as_driver(fail(cudaErrorInvalidKernelImage, "%s", written ? dlerror() : path));
  *module = static_cast<CUmodule>(library);
  ++counters.module_loads;
  return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) {
  dlclose(module);
  return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  void* kernel = dlsym(module, (std::string(name) + "_on_cpu").c_str());
  if (kernel == nullptr) return as_driver(fail(cudaErrorSymbolNotFound, "no kernel %s", name));
  *function = static_cast<CUfunction>(kernel);
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) {
  return as_driver(fail(cudaErrorNotSupported, "attributes of functions"));
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** arguments, void**) {
  if (config->sharedMemBytes || config->numAttrs)
    return as_driver(fail(cudaErrorNotSupported, "dynamic shared memory and attributes of launches"));
  const Launch launch(*reinterpret_cast<const Kernel*>(function),
                      dim3(config->gridDimX, config->gridDimY, config->gridDimZ),
                      dim3(config->blockDimX, config->blockDimY, config->blockDimZ), arguments);
  if (cudaError_t error = launch.check()) return as_driver(error);
  return as_driver(submit(config->hStream, [launch] { return launch.run(); }));
}

CUresult cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  return as_driver(fail(cudaErrorNotSupported, "tensor maps"));
}

}  // extern "C"
