// What this machine's CPU has, and how many threads of this process can compute at the same time.
#pragma once
#include "json.h"

// Whether it has all features of a list, in LLVM's names.
bool has_features(const Json& names);

// Every physical core that the process may run on, or fewer where its control groups allow less processor time.
int usable_cores();
