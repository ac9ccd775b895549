// Switching of stacks for x86-64: callee-saved registers go onto the stack that is left.
#include "fibers.h"

#include <cstdint>

asm(R"(
.text
.globl switch_stacks
.hidden switch_stacks
.type switch_stacks, @function
switch_stacks:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size switch_stacks, .-switch_stacks
)");

namespace cuda_on_cpu {

void* prepare_stack(char* top, void (*entry)()) {
  constexpr int saved_registers = 6;
  auto* stack = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{63});
  *--stack = nullptr;  // the address that entry would return to
  *--stack = reinterpret_cast<void*>(entry);
  for (int i = 0; i < saved_registers; ++i) *--stack = nullptr;
  return stack;
}

}  // namespace cuda_on_cpu
