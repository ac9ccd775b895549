// What a chat completion asks for, and what it is answered with, without HTTP.
#pragma once
#include <functional>
#include <list>
#include <mutex>
#include <string>

#include "engine.h"

struct Message {
  std::string role, content;
};

struct CompletionRequest {
  std::string system;  // of the system messages; empty where there is none
  bool has_system = false;
  std::vector<Message> turns;  // user and assistant by turns, the user first and last
  SamplingParams params;
  std::optional<std::string> think;
  bool stream = false, usage = false;

  // Raises UserError for what is no such request.
  static CompletionRequest parse(std::string_view body, const Engine& engine, const SamplingParams& defaults);
};

struct Completion {
  std::string text, reasoning, finish_reason;
  size_t prompt_tokens = 0, tokens = 0;
};

// Answers requests one after the other, each from the state that an earlier one has left where its turns begin like that one's.
class Completions {
 public:
  explicit Completions(Engine& engine);

  // `sink` is told of every piece, and ends the answer with false.
  Completion answer(const CompletionRequest& request, const std::function<bool(const Piece&)>& sink);

 private:
  struct Kept {
    std::string turns;
    State state;
  };

  State state_before(const Template& form, const CompletionRequest& request);
  void keep(const std::string& turns, const State& state);

  Engine& engine_;
  std::mutex one_at_a_time_;
  std::list<Kept> kept_;  // the last one first
  size_t most_kept_;
};
