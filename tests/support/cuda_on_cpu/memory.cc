#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "machine.h"

namespace cuda_on_cpu {
namespace {

constexpr size_t page = 4096, alignment = 256;
constexpr unsigned char garbage = 0xFF;

constexpr size_t reserved = size_t{1} << 40, before = size_t{1} << 30;  // addresses: all, and those before the first

std::map<const char*, size_t> allocations;

size_t round_up(size_t size, size_t multiple) { return (size + multiple - 1) / multiple * multiple; }

void* map(void* at, size_t size, int flags) {
  return mmap(at, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
}

bool is_garbage(const char* begin, const char* end) {
  return std::all_of(begin, end, [](char c) { return static_cast<unsigned char>(c) == garbage; });
}

}  // namespace

void* allocate(size_t size) {
  static char* const addresses = static_cast<char*>(map(nullptr, reserved, 0));
  static size_t taken = before;
  const size_t aligned = round_up(size, alignment), pages = round_up(size, page);
  if (size > device_bytes || counters.allocated_bytes + size > device_bytes) return nullptr;
  if (addresses == MAP_FAILED || taken + pages + before > reserved) return nullptr;
  char* first = addresses + taken;
  if (mprotect(first, pages, PROT_READ | PROT_WRITE)) return nullptr;
  taken += pages + page;
  memset(first, garbage, pages);
  char* start = first + pages - aligned;
  allocations[start] = size;
  counters.allocated_bytes += size;
  ++counters.live_allocations;
  return start;
}

bool release(void* pointer) {
  char* start = static_cast<char*>(pointer);
  const auto found = allocations.find(start);
  if (found == allocations.end()) return false;
  const size_t size = found->second, pages = round_up(size, page);
  char *end = start + round_up(size, alignment), *first = end - pages;
  const bool intact = is_garbage(first, start) && is_garbage(start + size, end);
  allocations.erase(found);
  counters.allocated_bytes -= size;
  --counters.live_allocations;
  map(first, pages, MAP_FIXED);  // never to be used again, so that whoever still does is found out
  return intact;
}

bool is_device_memory(const void* pointer, size_t size) {
  const char* start = static_cast<const char*>(pointer);
  auto after = allocations.upper_bound(start);
  if (after == allocations.begin()) return false;
  const auto& [base, bytes] = *--after;
  return start + size <= base + bytes;
}

}  // namespace cuda_on_cpu
