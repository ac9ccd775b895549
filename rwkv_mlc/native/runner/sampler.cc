#include "sampler.h"

#include <sys/random.h>

#include <cmath>
#include <cstdio>

#include "error.h"

namespace {

constexpr double kUnit = 4294967296.0;  // parts of 1 in which top_p and random numbers are taken

void check_range(const char* name, double value, double low, double high) {
  if (value >= low && value <= high) return;
  char sentence[160];
  std::snprintf(sentence, sizeof sentence, "%s must be from %g to %g, not %g.", name, low, high, value);
  throw UserError(sentence);
}

uint64_t drawn_seed() {
  uint64_t seed;
  if (getrandom(&seed, sizeof seed, 0) != sizeof seed) throw UserError("The system gives no random numbers; give --seed.");
  return seed;
}

// SplitMix64: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (2014).
uint64_t next(uint64_t& state) {
  state += 0x9E3779B97F4A7C15;
  uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

}  // namespace

void SamplingParams::check() const {
  check_range("temperature", temperature, 0, 100);
  if (temperature > 0 && temperature < 0.01) {
    throw UserError("temperature must be 0 (the likeliest token) or at least 0.01.");
  }
  check_range("top_p", top_p, 0, 1);
  check_range("top_k", double(top_k), 0, 2147483647);
  check_range("presence_penalty", presence_penalty, -2, 2);
  check_range("frequency_penalty", frequency_penalty, -2, 2);
  check_range("repetition_penalty", repetition_penalty, 1, 10);
  check_range("penalty_decay", penalty_decay, 0, 1);
  check_range("max_tokens", double(max_tokens), 1, 2147483647);
  for (const std::string& text : stop) {
    if (text.empty()) throw UserError("stop holds strings that are not empty.");
  }
}

Counts::Counts(std::vector<int32_t> ids, std::vector<float> counts) : ids_(std::move(ids)), counts_(std::move(counts)) {
  for (size_t place = 0; place < ids_.size(); ++place) places_[ids_[place]] = place;
}

void Counts::add(int32_t token, double decay) {
  for (float& count : counts_) count *= float(decay);
  const auto [found, added] = places_.try_emplace(token, ids_.size());
  if (added) {
    ids_.push_back(token);
    counts_.push_back(0);
  }
  counts_[found->second] += 1;
}

Sampler::Sampler(const SamplingParams& params, Counts counts)
    : params_(params),
      seed_(params.seed ? *params.seed : drawn_seed()),
      random_(seed_),
      counts_(std::move(counts)),
      penalizes_(params.repetition_penalty != 1 || params.presence_penalty != 0 || params.frequency_penalty != 0) {}

Request Sampler::request(std::vector<Penalty>& penalties) {
  Request request;
  request.inverse_temperature = float(params_.temperature > 0 ? 1 / params_.temperature : 0);
  request.top_k = params_.top_k;
  request.top_p = uint32_t(uint64_t(std::fmax(std::nearbyint(params_.top_p * kUnit), 1)));  // 0, which is off, for 2 ** 32
  request.drawn = params_.temperature > 0 ? next(random_) >> 32 : 0;
  request.repetition_penalty = params_.repetition_penalty;
  request.first = penalties.size();
  if (penalizes_) {
    for (size_t i = 0; i < counts_.ids().size(); ++i) {
      const float frequency = counts_.counts()[i] * float(params_.frequency_penalty);
      penalties.push_back({counts_.ids()[i], float(params_.presence_penalty) + frequency});
    }
  }
  request.end = penalties.size();
  return request;
}

void Sampler::count(int32_t token) {
  if (penalizes_) counts_.add(token, params_.penalty_decay);
}
