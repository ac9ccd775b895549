// A compiled library with its parameters: tokens and state in, logits out; and the tokens that are chosen from them.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "json.h"
#include "pack.h"
#include "sampler.h"
#include "tokenizer.h"

// Logits after a token, float32 [vocab_size], where the library left them.
struct Logits {
  std::shared_ptr<const void> owner;
  std::span<const float> values;
};

// What comes after the last token that a state has read: the logits, and of an answer the counts of its tokens.
struct Ending {
  Logits logits;
  Counts counts;
};

// A tensor of the state of one sequence.
struct StatePart {
  std::string name;
  std::vector<int64_t> shape;  // with an axis of one sequence before
  std::span<float> values;
};

// The recurrent state of one sequence, which calls change in place.
struct State {
  std::shared_ptr<const void> tensors;  // as the library takes them
  std::vector<StatePart> parts;
  std::optional<Ending> last;  // none where nothing was read, or nobody kept it
  bool read = false;           // whether anything was
  int64_t length = 0;          // tokens that it has read
};

// What was read and written, and in how many seconds.
struct Stats {
  int64_t prefilled = 0, decoded = 0;
  double prefill_seconds = 0, decode_seconds = 0;
};

class Model {
 public:
  // That of a pack, for this CPU. Raises UserError where this program has no code for it, and where both do not fit together.
  explicit Model(const Pack& pack);
  ~Model();

  // The state before the first token.
  State new_state() const;
  State copy(const State& state) const;
  // Logits of one's own.
  Logits logits(std::span<const float> values) const;

  // Reads tokens, at most `prefill_chunk` of them; the logits after the last are in `state.last`. Raises UserError for a token
  // that there is not.
  void read(std::span<const int> tokens, State& state);
  // Raises UserError where the logits are not finite.
  int choose(const Logits& logits, Sampler& sampler);
  // Gives back memory that calls have left for later ones.
  void free_memory();

  Stats stats;

  const std::string& level() const { return level_; }
  int64_t vocab_size() const { return vocab_size_; }
  int64_t prefill_chunk() const { return prefill_chunk_; }
  int64_t context_length() const { return context_length_; }
  const Tokenizer& tokenizer() const { return tokenizer_; }

 private:
  struct Library;
  struct Spec;

  State allocated() const;

  std::string level_;
  int64_t vocab_size_, prefill_chunk_, context_length_;
  Tokenizer tokenizer_;
  std::unique_ptr<Library> library_;
  std::vector<Spec> specs_;
};
