// What CUDA C++ has beyond C++, for kernels that run on a CPU.
#pragma once

#include <math.h>
#include <string.h>
#include <vector_functions.h>

#include <type_traits>
#include <utility>

#include "kernel.h"

#undef __device__
#undef __host__
#undef __global__
#undef __launch_bounds__
#undef __shared__
#define __device__
#define __host__
#define __global__
#define __launch_bounds__(threads)
// `alignas` may not stand after attributes.
#define alignas(bytes) __attribute__((aligned(bytes)))
#define __shared__(kernel) static __attribute__((section("shared_" #kernel)))
#define __syncthreads() cuda_on_cpu::synchronize_threads(__LINE__)

#define load_matrices(...) cuda_on_cpu::load_matrices(__VA_ARGS__, __LINE__)
#define multiply_matrices(...) cuda_on_cpu::multiply_matrices(__VA_ARGS__, __LINE__)
#define __activemask() 0xFFFFFFFFu
#define __shfl_sync(mask, value, lane, width) shuffled(value, first_lane(width) + (lane), width, __LINE__)
#define __shfl_down_sync(mask, value, delta, width) shuffled(value, this_lane() + (delta), width, __LINE__)
using cuda_on_cpu::async_commit;
using cuda_on_cpu::async_copy;
using cuda_on_cpu::async_wait;

inline unsigned this_lane() { return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32; }
inline unsigned first_lane(unsigned width) { return this_lane() / width * width; }

// The value of another thread among `width` of the warp, or the thread's own where there is none.
template <typename T>
T shuffled(T value, unsigned source, unsigned width, int line) {
  static_assert(sizeof(T) == sizeof(unsigned));
  unsigned word;
  memcpy(&word, &value, sizeof word);
  const bool inside = source < first_lane(width) + width;
  word = cuda_on_cpu::shuffled(word, inside ? source : this_lane(), line);
  memcpy(&value, &word, sizeof value);
  return value;
}

inline void load_where(unsigned* to, const void* from, bool inside) {
  if (inside) *reinterpret_cast<uint4*>(to) = *static_cast<const uint4*>(from);
}

// a * b + c of two halves each, rounded once.
inline unsigned multiply_add_pairs(unsigned a, unsigned b, unsigned c) {
  _Float16 x[2], y[2], z[2];
  memcpy(x, &a, sizeof x);
  memcpy(y, &b, sizeof y);
  memcpy(z, &c, sizeof z);
  for (int i = 0; i < 2; ++i) z[i] = fma(double(x[i]), double(y[i]), double(z[i]));
  unsigned result;
  memcpy(&result, z, sizeof result);
  return result;
}

inline unsigned masked_or(unsigned word, unsigned mask, unsigned bits) { return (word & mask) | bits; }

// Byte i of the result is the byte of y:x that digit i of `selector` names.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const unsigned long long bytes = (unsigned long long)y << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= (bytes >> 8 * (selector >> 4 * i & 7) & 0xFF) << 8 * i;
  return result;
}

template <typename T>
T max(T a, T b) {
  return a > b ? a : b;
}

template <typename T>
T min(T a, T b) {
  return a < b ? a : b;
}

inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }

namespace cuda_on_cpu {

template <auto kernel>
struct Called;

template <typename... P, void (*kernel)(P...)>
struct Called<kernel> {
  static constexpr Parameter parameters[] = {{sizeof(P), std::is_pointer_v<P>}...};
  static constexpr size_t count = sizeof...(P);

  static void call(void** arguments) { call(arguments, std::index_sequence_for<P...>()); }

  template <size_t... i>
  static void call(void** arguments, std::index_sequence<i...>) {
    kernel(*static_cast<P*>(arguments[i])...);
  }
};

}  // namespace cuda_on_cpu

// Lets the machine find a kernel: `NAME_on_cpu`.
#define KERNEL(name, most_threads)                                                                         \
  extern "C" char __start_shared_##name[] __attribute__((weak, visibility("hidden")));                      \
  extern "C" char __stop_shared_##name[] __attribute__((weak, visibility("hidden")));                       \
  extern "C" __attribute__((visibility("default"))) const cuda_on_cpu::Kernel name##_on_cpu = {             \
      #name,        cuda_on_cpu::Called<name>::call, cuda_on_cpu::Called<name>::parameters,                 \
      cuda_on_cpu::Called<name>::count, most_threads, __start_shared_##name,                                \
      size_t(__stop_shared_##name - __start_shared_##name)};
