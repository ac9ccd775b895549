// The command line of a packaged model.
#pragma once
#include <optional>
#include <string>

#include "engine.h"

struct Options {
  std::optional<std::string> prompt, think, system, state, save_state;
  int threads = 0;  // 0: as many as there are cores
  bool chat = false, stats = false, help = false, version = false, licenses = false;
  // The settings that were given, by their names.
  std::vector<std::pair<std::string, std::string>> settings;
  std::vector<std::string> stops;

  // Raises UserError for a word that means nothing.
  static Options parse(int count, char** words);
};

// Gives a setting its value. Raises UserError for a name that there is not, and for a value that it does not take.
void set(SamplingParams& params, const std::string& name, const std::string& value);
// A stop string as it is written on a line. Raises UserError.
std::string parse_stop(const std::string& text);

// Raises UserError for what is no number from `low` to `high`.
int64_t whole_number(const std::string& name, const std::string& text, int64_t low, int64_t high);

extern const char* const kHelp;
