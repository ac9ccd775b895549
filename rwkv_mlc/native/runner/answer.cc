#include "answer.h"

#include <algorithm>
#include <stdexcept>

#include "error.h"

namespace {

constexpr size_t kFewTokens = 8;  // up to here one call a token is faster than a prefill, which expands all weights first

std::string spelled(const Tokenizer& tokenizer, std::span<const int> tokens) {
  std::string bytes;
  for (const int token : tokens) bytes += tokenizer.bytes(token);
  return bytes;
}

void append(std::vector<int>& tokens, std::span<const int> more) { tokens.insert(tokens.end(), more.begin(), more.end()); }

}  // namespace

Answer::Answer(Model& model, const std::set<int>& end_ids, std::vector<int> prompt, const SamplingParams& params, State& state,
               bool keeps, std::optional<ChatRules> chat)
    : model_(model),
      end_ids_(end_ids),
      params_(params),
      state_(state),
      keeps_(keeps),
      chat_(std::move(chat)),
      pending_(std::move(prompt)),
      prompt_size_(pending_.size()),
      counts_(pending_.empty() && state.last ? state.last->counts : Counts()),
      sampler_(params, counts_),
      stream_(params.stop) {
  if (pending_.empty() && !state.last) {
    throw UserError("This state came without the logits that an empty prompt goes on from; give a prompt of some text.");
  }
  if (!chat_ || !chat_->thinking) return;
  const Thinking& tags = *chat_->form.thinking;
  thoughts_.emplace(tags.begin, tags.end, chat_->thinking->opening);
  retold_ = Retold{model.tokenizer().encode(chat_->thinking->prompt), 0, {}};
  size_t& shared = retold_->shared;
  const size_t most = std::min(prompt_size_ - 1, retold_->prompt.size());
  while (shared < most && pending_[shared] == retold_->prompt[shared]) ++shared;
}

bool Answer::read_prompt(const std::function<bool(int64_t, int64_t)>& progress) {
  const int64_t total = read_ + pending_.size();
  while (!pending_.empty()) {
    call();
    if (progress && !progress(read_, total)) return false;
  }
  return true;
}

std::vector<Piece> Answer::next() {
  while (!pending_.empty()) call();
  std::vector<Piece> pieces = take(model_.choose(state_.last->logits, sampler_));
  if (finished() && keeps_) settle();
  return pieces;
}

void Answer::settle() {
  if (!closed_) close();
  while (!pending_.empty()) call();
  if (state_.last) state_.last->counts = counts_;
}

std::vector<Piece> Answer::take(int token) {
  tokens.push_back(token);
  const bool ended = end_ids_.contains(token);
  std::string certain = ended ? "" : stream_.push(model_.tokenizer().bytes(token));
  if (ended || stream_.stopped()) {
    finish_reason = "stop";
  } else if (int64_t(tokens.size()) >= params_.max_tokens) {
    finish_reason = "length";
  } else {
    pending_.push_back(token);
  }
  if (finished()) certain += stream_.finish();
  std::vector<Piece> pieces;
  if (!thoughts_) {
    if (!certain.empty()) pieces.push_back({certain});
  } else {
    pieces = thoughts_->push(certain);
    if (finished()) {
      for (Piece& piece : thoughts_->finish()) pieces.push_back(std::move(piece));
    }
  }
  for (const Piece& piece : pieces) (piece.thought ? reasoning : text) += piece.text;
  return pieces;
}

std::string Answer::closing(std::string_view text) const { return chat_ ? chat_->form.after_answer(text) : ""; }

// How many of the pending tokens one call may read: up to where later turns part from this one, which `remember` has to see.
size_t Answer::readable() const {
  if (retold_ && keeps_ && !closed_ && read_ < retold_->shared) return std::min(pending_.size(), retold_->shared - read_);
  return pending_.size();
}

void Answer::call() {
  if (keeps_) remember();
  const size_t part = std::min<size_t>(readable(), model_.prefill_chunk());
  const size_t count = part > kFewTokens ? part : 1;
  model_.read(std::span(pending_).first(count), state_);
  if (read_ >= prompt_size_ && !closed_) fed_ += count;
  read_ += count;
  pending_.erase(pending_.begin(), pending_.begin() + count);
}

void Answer::remember() {
  if (retold_) {
    if (read_ == retold_->shared && !retold_->state) retold_->state = model_.copy(state_);
    return;
  }
  const std::string& held = stream_.held();
  if (held.empty() || read_ < prompt_size_ || closed_) return;
  const std::string after = closing(stream_.released());
  const size_t last = model_.tokenizer().bytes(pending_.front()).size();
  const std::string_view read = std::string_view(held).substr(0, held.size() - std::min(held.size(), last));
  if (!after.starts_with(held) && after.starts_with(read)) earlier_ = Earlier{model_.copy(state_), fed_};
}

void Answer::close() {
  const Tokenizer& tokenizer = model_.tokenizer();
  closed_ = true;
  if (retold_) {
    const size_t begun = retold_->state ? retold_->shared : read_;
    pending_.clear();
    if (begun < retold_->prompt.size()) append(pending_, std::span(retold_->prompt).subspan(begun));
    append(pending_, tokenizer.encode(chat_->form.told(text)));
    if (retold_->state) state_ = std::move(*retold_->state);
    counts_ = {};
    return;
  }
  const std::string shown = stream_.released(), goal = shown + closing(shown);
  if (!goal.starts_with(spelled(tokenizer, std::span(tokens).first(fed_)))) {
    if (!earlier_) throw std::logic_error("nothing was remembered before a stop string");
    state_ = std::move(earlier_->state);
    fed_ = earlier_->tokens;
  }
  size_t begun = spelled(tokenizer, std::span(tokens).first(fed_)).size(), whole = fed_;
  if (goal == shown) {  // tokens that were shown whole are read as they were chosen
    while (whole < tokens.size() && !end_ids_.contains(tokens[whole])) {
      const size_t end = begun + tokenizer.bytes(tokens[whole]).size();
      if (end > shown.size()) break;
      begun = end;
      ++whole;
    }
    for (size_t i = 0; i < whole; ++i) counts_.add(tokens[i], params_.penalty_decay);
  } else {
    counts_ = {};
  }
  std::vector<int> lacking(pending_.begin(), pending_.begin() + (read_ < prompt_size_ ? prompt_size_ - read_ : 0));
  append(lacking, std::span(tokens).subspan(fed_, whole - fed_));
  append(lacking, tokenizer.encode(std::string_view(goal).substr(begun)));
  pending_ = std::move(lacking);
}
