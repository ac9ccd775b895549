#pragma once
#include <stdexcept>
#include <string>

// What a user can mend: one sentence on what was expected and found, and what to do next.
struct UserError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
