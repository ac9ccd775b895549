// The device's memory: a range of addresses in which nothing may be touched but allocations, each on pages of its own.
#pragma once

#include <cstddef>

namespace cuda_on_cpu {

constexpr size_t device_bytes = 128 << 20;

// Filled with 0xFF; none where the device has not so much left.
void* allocate(size_t size);

// False where nothing was allocated there, or where a kernel wrote beside it.
bool release(void* start);

// Whether all of it lies in one allocation.
bool is_device_memory(const void* start, size_t size);

}  // namespace cuda_on_cpu
