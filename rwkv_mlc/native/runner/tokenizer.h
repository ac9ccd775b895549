// The World tokenizer: greedy longest match on bytes.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

class Tokenizer {
 public:
  // Of a pack's vocabulary, whose bytes it goes on to use, for a model of so many tokens. Raises UserError for what is none.
  Tokenizer(std::string_view vocabulary, int64_t vocab_size);

  // Raises UserError where no token begins with the next byte.
  std::vector<int> encode(std::string_view text) const;
  // Of one token, which may be a part of a character; none for the end of text.
  std::string_view bytes(int token) const { return bytes_.at(token); }
  // Ids that are no tokens, rising.
  std::vector<int> padding() const;

 private:
  struct Token {
    std::string_view bytes;
    int id;
  };
  std::vector<Token> sorted_;               // by bytes
  std::vector<std::string_view> bytes_;     // by id
  size_t first_[257];                       // where in `sorted_` the tokens begin that begin with a byte
};
