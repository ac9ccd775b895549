#include "block.h"

#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "fibers.h"
#include "machine.h"
#include "warp.h"

extern "C" {
uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
}

namespace cuda_on_cpu {
namespace {

constexpr size_t stack_size = 128 << 10;
constexpr size_t stack_shift = 320;  // between neighbors, so that not all use the same lines of a cache
constexpr int garbage = 0xFF;        // NaN in every floating type

enum class Waiting { nowhere, barrier, warp };

struct Thread {
  uint3 index;
  void* stack = nullptr;  // where it was left; none before its start and after its end
  bool started = false, ended = false;
  Waiting waiting = Waiting::nowhere;
  int line = 0;
  WarpOperation operation;
  AsyncCopies copies;
};

struct Fault {
  int signal = 0;
  const void* address = nullptr;
};

const Kernel* kernel;
void** arguments;
std::vector<Thread> threads;
Thread* current;
void* scheduler;
Fault fault;
cudaError_t status;
unsigned schedule;  // bit 0: threads go backwards; bit 1: asynchronous copies are early instead of late

char* stack_top(size_t thread) {
  static std::vector<char*> stacks;
  while (stacks.size() <= thread) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(nullptr, stack_size, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) abort();
    stacks.push_back(static_cast<char*>(memory) + stack_size - stacks.size() * stack_shift % 4096);
  }
  return stacks[thread];
}

void live() {
  kernel->call(arguments);
  current->ended = true;
  void* never;
  switch_stacks(&never, scheduler);
}

void resume(Thread& thread) {
  if (!thread.started) {
    thread.started = true;
    thread.stack = prepare_stack(stack_top(&thread - threads.data()), live);
  }
  current = &thread;
  thread.waiting = Waiting::nowhere;
  threadIdx = thread.index;
  switch_stacks(&scheduler, thread.stack);
  current = nullptr;
}

void wait(Waiting where, int line) {
  current->waiting = where;
  current->line = line;
  switch_stacks(&current->stack, scheduler);
}

std::string name(const Thread& thread) { return "thread " + std::to_string(&thread - threads.data()); }

std::string place(const Thread& thread) {
  return name(thread) + (thread.ended ? " has ended" : " waits at line " + std::to_string(thread.line));
}

cudaError_t failure(const char* what, const Thread& thread, const Thread& other) {
  return fail(cudaErrorLaunchFailure, "%s, block (%u, %u, %u): %s: %s, %s", kernel->name, blockIdx.x, blockIdx.y,
              blockIdx.z, what, place(thread).c_str(), place(other).c_str());
}

cudaError_t failure(const Thread& thread, const Fault& fault) {
  const bool trapped = fault.signal == SIGILL;
  const char* what = trapped ? "misaligned access, index beyond an array, shift too far or overflow" : "illegal address";
  return fail(trapped ? cudaErrorIllegalInstruction : cudaErrorIllegalAddress, "%s, block (%u, %u, %u), %s: %s (%p)",
              kernel->name, blockIdx.x, blockIdx.y, blockIdx.z, name(thread).c_str(), what, fault.address);
}

// Whether both wait at the same place, or have ended. A thread that has ended reaches no barrier.
bool together(const Thread& one, const Thread& other) {
  return one.ended == other.ended && (one.ended || (one.waiting == other.waiting && one.line == other.line));
}

// Threads from `begin` on until all of them wait at the same place or have ended.
cudaError_t run_warp(size_t begin, size_t end) {
  for (;;) {
    for (size_t i = begin; i < end; ++i) {
      Thread& thread = threads[schedule & 1 ? begin + end - 1 - i : i];
      if (thread.ended) continue;
      resume(thread);
      if (fault.signal) return failure(thread, fault);
      if (status != cudaSuccess) return status;
    }
    for (size_t i = begin + 1; i < end; ++i)
      if (!together(threads[begin], threads[i])) return failure("a warp is divided", threads[begin], threads[i]);
    if (threads[begin].ended || threads[begin].waiting == Waiting::barrier) return cudaSuccess;
    if (end - begin != warp_size) return failure("a warp is not whole", threads[begin], threads[begin]);
    WarpOperation* operations[warp_size];
    for (size_t i = 0; i < warp_size; ++i) operations[i] = &threads[begin + i].operation;
    perform(operations);
  }
}

cudaError_t run_block() {
  const size_t count = threads.size(), warps = (count + warp_size - 1) / warp_size;
  memset(kernel->shared, garbage, kernel->shared_size);
  for (Thread& thread : threads) {
    thread.started = thread.ended = false;
    thread.copies.begin(schedule & 2);
  }
  for (;;) {
    for (size_t i = 0; i < warps; ++i) {
      const size_t begin = (schedule & 1 ? warps - 1 - i : i) * warp_size;
      if (cudaError_t error = run_warp(begin, std::min(begin + warp_size, count))) return error;
    }
    for (Thread& thread : threads)
      if (!together(threads[0], thread)) return failure("not all threads reach a barrier", threads[0], thread);
    if (threads[0].ended) return cudaSuccess;
  }
}

void on_fault(int signal, siginfo_t* info, void*) {
  if (current == nullptr) {  // not a kernel's doing
    ::signal(signal, SIG_DFL);
    return;
  }
  fault = {signal, info->si_addr};
  void* never;
  switch_stacks(&never, scheduler);
}

// While it lives, a kernel's thread that touches what it may not ends the launch instead of the process.
class FaultHandler {
 public:
  FaultHandler() {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    for (int i = 0; i < signal_count; ++i) sigaction(signals[i], &action, &before_[i]);
  }
  ~FaultHandler() {
    for (int i = 0; i < signal_count; ++i) sigaction(signals[i], &before_[i], nullptr);
  }

 private:
  static constexpr int signals[] = {SIGSEGV, SIGBUS, SIGILL}, signal_count = 3;
  struct sigaction before_[signal_count];
};

}  // namespace

void synchronize_threads(int line) { wait(Waiting::barrier, line); }

void async_copy(void* shared_to, const void* from, bool inside) {
  const auto to = static_cast<char*>(shared_to);
  const bool within = kernel->shared <= to && to + async_copy_size <= kernel->shared + kernel->shared_size;
  if (within && reinterpret_cast<uintptr_t>(to) % async_copy_size == 0 &&
      reinterpret_cast<uintptr_t>(from) % async_copy_size == 0) {
    current->copies.add(to, inside ? from : nullptr);
    return;
  }
  status = fail(cudaErrorLaunchFailure, "%s, thread %u: async_copy to %p from %p is misplaced", kernel->name,
                current->index.x, shared_to, from);
  void* never;
  switch_stacks(&never, scheduler);
}

void async_commit() { current->copies.commit(); }

void async_wait(int pending) { current->copies.wait(pending); }

void load_matrices(unsigned* fragments, const void* row, int line) {
  current->operation = WarpOperation::load(fragments, row);
  wait(Waiting::warp, line);
}

void multiply_matrices(float* sums, const unsigned* left, const unsigned* right, int line) {
  current->operation = WarpOperation::multiply(sums, left, right);
  wait(Waiting::warp, line);
}

unsigned shuffled(unsigned word, unsigned source, int line) {
  current->operation = WarpOperation::shuffle(&word, source);
  wait(Waiting::warp, line);
  return word;
}

cudaError_t run_blocks(const Kernel& launched, void** given, dim3 grid, dim3 block) {
  const FaultHandler handler;
  kernel = &launched;
  arguments = given;
  gridDim = grid;
  blockDim = block;
  fault = {};
  status = cudaSuccess;
  threads.resize(size_t{block.x} * block.y * block.z);
  for (unsigned i = 0; i < threads.size(); ++i)
    threads[i].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        if (cudaError_t error = run_block()) return error;
        ++schedule;
      }
  return cudaSuccess;
}

}  // namespace cuda_on_cpu

extern "C" __attribute__((visibility("default"))) void cuda_on_cpu_schedule(unsigned next) {
  cuda_on_cpu::schedule = next;
}
