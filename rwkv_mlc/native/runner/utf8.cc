#include "utf8.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>

namespace {

constexpr const char* kReplacement = "\xef\xbf\xbd";

struct Part {
  size_t length;   // of a character, or of the most of one that is there
  bool whole;
  bool unfinished;  // it ends where the bytes do, and more could complete it
};

// The first of some bytes, by table 3-7 of the Unicode Standard.
Part first(std::string_view bytes) {
  const auto at = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned char lead = at(0);
  if (lead < 0x80) return {1, true, false};
  size_t size = lead >= 0xc2 && lead <= 0xdf ? 2 : lead >= 0xe0 && lead <= 0xef ? 3 : lead >= 0xf0 && lead <= 0xf4 ? 4 : 0;
  if (size == 0) return {1, false, false};
  unsigned char low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  unsigned char high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  for (size_t i = 1; i < size; ++i) {
    if (i == bytes.size()) return {i, false, true};
    if (at(i) < low || at(i) > high) return {i, false, false};
    low = 0x80;
    high = 0xbf;
  }
  return {size, true, false};
}

// Of the first character of a valid text, whose length is put into `length`.
uint32_t code_point(std::string_view text, size_t& length) {
  length = first(text).length;
  const auto at = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  if (length == 1) return at(0);
  uint32_t code = at(0) & (0xff >> (length + 1));
  for (size_t i = 1; i < length; ++i) code = code << 6 | (at(i) & 0x3f);
  return code;
}

bool is_space_code(uint32_t code) {
  return (code >= 9 && code <= 13) || (code >= 0x1c && code <= 0x20) || code == 0x85 || code == 0xa0 || code == 0x1680 ||
         (code >= 0x2000 && code <= 0x200a) || code == 0x2028 || code == 0x2029 || code == 0x202f || code == 0x205f ||
         code == 0x3000;
}

bool is_control(uint32_t code) {
  return code < 0x20 || (code >= 0x7f && code <= 0x9f) || code == 0x61c || code == 0x200e || code == 0x200f ||
         (code >= 0x2028 && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069);
}

}  // namespace

std::string Utf8Decoder::push(std::string_view bytes, bool last) {
  pending_ += bytes;
  std::string text;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const Part part = first(rest);
    if (part.unfinished && !last) break;
    if (part.whole) {
      text += rest.substr(0, part.length);
    } else {
      text += kReplacement;
    }
    rest.remove_prefix(part.length);
  }
  pending_ = std::string(rest);
  return text;
}

bool is_utf8(std::string_view bytes) {
  while (!bytes.empty()) {
    const Part part = first(bytes);
    if (!part.whole) return false;
    bytes.remove_prefix(part.length);
  }
  return true;
}

std::string_view strip_left(std::string_view text) {
  size_t length;
  while (!text.empty() && is_space_code(code_point(text, length))) text.remove_prefix(length);
  return text;
}

std::string_view strip_right(std::string_view text) {
  while (!text.empty()) {
    size_t start = text.size() - 1, length;
    while (start > 0 && (text[start] & 0xc0) == 0x80) --start;
    if (!is_space_code(code_point(text.substr(start), length))) break;
    text.remove_suffix(text.size() - start);
  }
  return text;
}

bool is_space(std::string_view text) { return !text.empty() && strip_left(text).empty(); }

std::string escaped(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    size_t length;
    const uint32_t code = code_point(text, length);
    if (is_control(code) && code != '\n' && code != '\t') {
      char spelled[8];
      std::snprintf(spelled, sizeof spelled, "\\u%04x", code);
      out += spelled;
    } else {
      out += text.substr(0, length);
    }
    text.remove_prefix(length);
  }
  return out;
}
