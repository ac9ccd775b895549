// UTF-8 as Python reads it: what is none reads U+FFFD, one for each maximal part of a character.
#pragma once
#include <string>
#include <string_view>

class Utf8Decoder {
 public:
  // The characters that the bytes complete; an incomplete one at the end waits for more unless these are the `last`.
  std::string push(std::string_view bytes, bool last = false);

 private:
  std::string pending_;
};

bool is_utf8(std::string_view bytes);

// Without white space, as Python's str knows it, at the beginning, or at the end.
std::string_view strip_left(std::string_view text);
std::string_view strip_right(std::string_view text);
bool is_space(std::string_view text);

// With control characters and marks of the direction of writing, but line ends and tabs, as \u001b and so on.
std::string escaped(std::string_view text);
