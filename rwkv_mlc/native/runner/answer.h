// A prompt and its answer, in a state: docs/generation.md, "What a state has read". As rwkv_mlc/engine/sequence.py.
#pragma once
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "model.h"
#include "sampler.h"
#include "template.h"
#include "text_stream.h"
#include "thoughts.h"

// How an answer begins with thoughts, and what later turns have of both.
struct ThinkingTurn {
  std::string opening, prompt;
};

// What belongs to answers of a chat: what closes one, and its thoughts.
struct ChatRules {
  const Template& form;
  std::optional<ThinkingTurn> thinking;
};

class Answer {
 public:
  // Goes on from `state`, which reads `prompt`; without tokens from what came last. `keeps` says whether somebody goes on from
  // the state, which then has read exactly the prompt, the text and what closes it when the answer is complete. The model, the
  // state and the template must outlive it. Raises UserError for a state without what an empty prompt goes on from.
  Answer(Model& model, const std::set<int>& end_ids, std::vector<int> prompt, const SamplingParams& params, State& state,
         bool keeps, std::optional<ChatRules> chat = {});

  // Has the prompt read, of which `progress` is told after every call: how much and of how much; false ends it.
  bool read_prompt(const std::function<bool(int64_t, int64_t)>& progress = {});
  // Goes on with a token; the text that it makes certain. Not after the end.
  std::vector<Piece> next();
  // Write no more, and have the state read exactly what it is to have read.
  void settle();

  bool finished() const { return !finish_reason.empty(); }

  std::string finish_reason;  // "stop" or "length", empty before the end
  std::string text, reasoning;
  std::vector<int> tokens;
  uint64_t seed() const { return sampler_.seed(); }
  size_t prompt_tokens() const { return prompt_size_; }

 private:
  std::vector<Piece> take(int token);
  std::string closing(std::string_view text) const;
  size_t readable() const;
  void call();
  void remember();
  void close();

  // What the state held before a token that may belong to a stop string.
  struct Earlier {
    State state;
    size_t tokens;  // of the answer that it has read
  };
  // What the state is to have read in the place of the prompt, when an answer with thoughts is closed.
  struct Retold {
    std::vector<int> prompt;
    size_t shared;  // so many tokens are those of the answer's own prompt, too
    std::optional<State> state;  // after those
  };

  Model& model_;
  const std::set<int>& end_ids_;
  SamplingParams params_;
  State& state_;
  bool keeps_, closed_ = false;
  std::optional<ChatRules> chat_;
  std::vector<int> pending_;
  size_t prompt_size_;
  size_t read_ = 0, fed_ = 0;
  Counts counts_;
  Sampler sampler_;
  TextStream stream_;
  std::optional<ThoughtStream> thoughts_;
  std::optional<Earlier> earlier_;
  std::optional<Retold> retold_;
};
