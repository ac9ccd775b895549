// A packed model with its template and defaults, and conversations with it. As rwkv_mlc/engine/engine.py and chat.py.
#pragma once
#include <functional>
#include <optional>
#include <set>
#include <string>

#include "answer.h"
#include "model.h"
#include "pack.h"
#include "template.h"

struct Engine {
  explicit Engine(const Pack& pack);

  // The ids of a prompt; the token that begins a text stands for an empty one where the state has read nothing.
  std::vector<int> encode(std::string_view prompt, const State& state) const;
  // The model's defaults with the template's stop strings.
  SamplingParams chat_params() const;
  // Has a state read a text.
  void read(std::string_view text, State& state);

  void save(const State& state, const std::string& path) const;
  // Raises UserError for a file that holds no state, or that of another model.
  State load(const std::string& path) const;

  std::string name, source_sha256, quantization;
  Model model;
  Template form;
  SamplingParams defaults;
  std::set<int> end_ids;
  int begin_id;
};

class Chat {
 public:
  // Told of every piece of an answer; false ends it.
  using Sink = std::function<bool(const Piece&)>;

  Chat(Engine& engine, SamplingParams params);

  // Forget the conversation; the system prompt is read again.
  void reset();
  // The answer to a message, as it becomes certain; `progress` as for Answer::read_prompt. Raises UserError, and counts the
  // message as never sent, for text that the vocabulary cannot spell. False where reading was ended.
  bool send(const std::string& text, const Sink& sink, const std::function<bool(int64_t, int64_t)>& progress = {});
  // The last message once more. Raises UserError where there is none.
  bool retry(const Sink& sink);

  void save(const std::string& path) const { engine_.save(state, path); }
  void load(const std::string& path);

  SamplingParams params;
  std::optional<std::string> think;
  State state;
  std::optional<Answer> answer;  // the last

 private:
  Engine& engine_;
  std::optional<State> before_;
  std::optional<std::string> sent_;
};
