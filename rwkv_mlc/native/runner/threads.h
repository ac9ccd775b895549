// The threads of the kernels: the pool of rwkv_mlc/engine/threads/pool.cc, in the place of TVM's.
#pragma once

// How many run a kernel, the caller's among them.
void set_threads(int count);
