// Stacks that a thread of this process can work on in turns.
#pragma once

#include <cstddef>

namespace cuda_on_cpu {

// Goes on where the stack `to` was left; `*from` is where to come back to.
extern "C" void switch_stacks(void** from, void* to);

// A stack on which `entry`, which never returns, begins when it is first switched to.
void* prepare_stack(char* top, void (*entry)());

}  // namespace cuda_on_cpu
