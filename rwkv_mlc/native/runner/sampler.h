// How tokens are chosen, and what belongs to an answer for that: docs/generation.md. The library follows the rules; here are
// its arguments.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

struct SamplingParams {
  double temperature = 1.0, top_p = 0.85;
  int64_t top_k = 0;
  double presence_penalty = 0, frequency_penalty = 0, repetition_penalty = 1, penalty_decay = 0.996;
  std::optional<uint64_t> seed;
  int64_t max_tokens = 256;
  std::vector<std::string> stop;

  // Raises UserError for a value outside its range.
  void check() const;
};

// How often tokens were chosen, shrunk at every token since.
class Counts {
 public:
  Counts() = default;
  Counts(std::vector<int32_t> ids, std::vector<float> counts);

  void add(int32_t token, double decay);
  const std::vector<int32_t>& ids() const { return ids_; }
  const std::vector<float>& counts() const { return counts_; }

 private:
  std::vector<int32_t> ids_;
  std::vector<float> counts_;
  std::unordered_map<int32_t, size_t> places_;
};

// A row of what `sample` of a library calls requests: docs/artifact.md.
struct Request {
  int32_t row = 0;
  float inverse_temperature;
  int32_t top_k;
  uint32_t top_p, drawn;
  float repetition_penalty;
  int32_t first, end;
};

struct Penalty {
  int32_t token;
  float amount;
};

class Sampler {
 public:
  Sampler(const SamplingParams& params, Counts counts);

  // What is to be asked for the next token; the penalties that it names are appended.
  Request request(std::vector<Penalty>& penalties);
  void count(int32_t token);
  uint64_t seed() const { return seed_; }

 private:
  SamplingParams params_;
  uint64_t seed_, random_;
  Counts counts_;
  bool penalizes_;
};
