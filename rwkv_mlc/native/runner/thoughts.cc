#include "thoughts.h"

#include <algorithm>
#include <optional>

#include "utf8.h"

namespace {

// How many of the last bytes are the beginning of a tag.
size_t begun(std::string_view text, std::string_view tag) {
  for (size_t n = std::min(tag.size() - 1, text.size()); n > 0; --n) {
    if (tag.starts_with(text.substr(text.size() - n))) return n;
  }
  return 0;
}

}  // namespace

ThoughtStream::ThoughtStream(std::string begin, std::string end, const std::string& opening)
    : begin_(std::move(begin)), end_(std::move(end)), pending_(strip_left(opening)), opening_(pending_) {}

std::vector<Piece> ThoughtStream::push(const std::string& text) {
  pending_ += text;
  return divide(false);
}

std::vector<Piece> ThoughtStream::divide(bool last) {
  std::vector<Piece> pieces;
  std::optional<Step> before;
  while (before != step_) {
    before = step_;
    Piece piece = step(last);
    if (!piece.text.empty()) pieces.push_back(std::move(piece));
  }
  return pieces;
}

Piece ThoughtStream::step(bool last) {
  switch (step_) {
    case Step::kBegin: {
      const std::string text(strip_left(pending_));
      if (text.starts_with(begin_)) {
        pending_ = text.substr(begin_.size());
        step_ = Step::kBeforeThoughts;
      } else if (last && pending_ == opening_) {
        pending_.clear();
      } else if (last || !begin_.starts_with(text)) {
        step_ = Step::kAnswer;
      }
      return {};
    }
    case Step::kBeforeThoughts:
    case Step::kBeforeAnswer:
      pending_ = std::string(strip_left(pending_));
      if (!pending_.empty()) step_ = step_ == Step::kBeforeThoughts ? Step::kThink : Step::kAnswer;
      return {};
    case Step::kThink: {
      const size_t end = pending_.find(end_);
      if (end != std::string::npos) {
        const std::string thought(strip_right(std::string_view(pending_).substr(0, end)));
        pending_.erase(0, end + end_.size());
        step_ = Step::kBeforeAnswer;
        return {thought, true};
      }
      const size_t held = last ? 0 : begun(pending_, end_);
      const std::string certain(strip_right(std::string_view(pending_).substr(0, pending_.size() - held)));
      pending_ = last ? "" : pending_.substr(certain.size());
      return {certain, true};
    }
    case Step::kAnswer: {
      Piece piece{std::move(pending_)};
      pending_.clear();
      return piece;
    }
  }
  return {};
}
