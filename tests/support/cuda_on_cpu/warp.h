// What the threads of a warp do together, and the copies that each of them has under way.
#pragma once

#include <cstddef>
#include <vector>

namespace cuda_on_cpu {

constexpr size_t warp_size = 32;
constexpr size_t async_copy_size = 16;

// The operands of one thread, in registers as the PTX ISA lays them out.
struct WarpOperation {
  enum Kind { load_kind, multiply_kind, shuffle_kind } kind;
  unsigned* fragments;    // 4, of two halves each
  const void* row;        // of 8 halves in shared memory
  float* sums;            // 4
  const unsigned* left;   // 4
  const unsigned* right;  // 2
  unsigned* word;         // becomes that of the thread `source` of the warp
  unsigned source;

  static WarpOperation load(unsigned* fragments, const void* row);
  static WarpOperation multiply(float* sums, const unsigned* left, const unsigned* right);
  static WarpOperation shuffle(unsigned* word, unsigned source);
};

// The operation that all threads of a warp wait at.
void perform(WarpOperation* const* operations);

// Copies of a thread, in groups. Late ones are made when the thread waits for them, early ones at once: a kernel has to
// reckon with both.
class AsyncCopies {
 public:
  void begin(bool early);
  void add(void* to, const void* from);
  void commit();
  void wait(int pending);

 private:
  struct Copy {
    void* to;
    const void* from;  // none for zeros
    int group;
  };
  static void make(const Copy& copy);

  std::vector<Copy> copies_;
  int groups_ = 0;
  bool early_ = false;
};

}  // namespace cuda_on_cpu
