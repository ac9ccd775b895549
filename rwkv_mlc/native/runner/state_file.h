// States in files: safetensors, as docs/generation.md says and rwkv_mlc/engine/state_file.py writes them, byte for byte.
#pragma once
#include <string>

#include "engine.h"

// The file appears whole or not at all. Raises UserError where it cannot be written.
void save_state(const Engine& engine, const State& state, const std::string& path);
// Raises UserError for a file that is no state, and for a state of another model.
State load_state(const Engine& engine, const std::string& path);
