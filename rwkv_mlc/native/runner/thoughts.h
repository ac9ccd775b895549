// The text of an answer divided into thoughts and what is said after them: docs/generation.md, "Thoughts".
#pragma once
#include <string>
#include <vector>

struct Piece {
  std::string text;
  bool thought = false;
};

class ThoughtStream {
 public:
  ThoughtStream(std::string begin, std::string end, const std::string& opening);

  std::vector<Piece> push(const std::string& text);
  std::vector<Piece> finish() { return divide(true); }

 private:
  enum class Step { kBegin, kBeforeThoughts, kThink, kBeforeAnswer, kAnswer };
  std::vector<Piece> divide(bool last);
  Piece step(bool last);

  std::string begin_, end_, pending_, opening_;
  Step step_ = Step::kBegin;
};
