#include "tokenizer.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "error.h"

Tokenizer::Tokenizer(std::string_view vocabulary, int64_t vocab_size) : bytes_(vocab_size) {
  const auto damaged = [] { return UserError("The vocabulary is damaged; package the model again."); };
  while (!vocabulary.empty()) {
    uint32_t head[2];
    if (vocabulary.size() < sizeof head) throw damaged();
    std::memcpy(head, vocabulary.data(), sizeof head);
    vocabulary.remove_prefix(sizeof head);
    const auto [id, length] = head;
    if (id >= bytes_.size() || length == 0 || length > vocabulary.size()) throw damaged();
    const std::string_view bytes = vocabulary.substr(0, length);
    vocabulary.remove_prefix(length);
    if (!sorted_.empty() && sorted_.back().bytes >= bytes) throw damaged();
    sorted_.push_back({bytes, int(id)});
    bytes_[id] = bytes;
  }
  size_t at = 0;
  for (int byte = 0; byte < 256; ++byte) {
    first_[byte] = at;
    while (at < sorted_.size() && static_cast<unsigned char>(sorted_[at].bytes[0]) == byte) ++at;
  }
  first_[256] = at;
}

std::vector<int> Tokenizer::encode(std::string_view text) const {
  std::vector<int> tokens;
  for (size_t start = 0; start < text.size();) {
    const unsigned char lead = text[start];
    auto low = sorted_.begin() + first_[lead], high = sorted_.begin() + first_[lead + 1];
    const Token* longest = nullptr;
    // Those in [low, high) begin with the first `length` bytes from here; the shortest of them stands first.
    for (size_t length = 1; low != high; ++length) {
      if (low->bytes.size() == length) longest = &*low++;
      if (start + length >= text.size()) break;
      const unsigned char next = text[start + length];
      const auto at = [=](const Token& token) { return static_cast<unsigned char>(token.bytes[length]); };
      low = std::partition_point(low, high, [&](const Token& token) { return at(token) < next; });
      high = std::partition_point(low, high, [&](const Token& token) { return at(token) <= next; });
    }
    if (!longest) {
      char sentence[128];
      std::snprintf(sentence, sizeof sentence, "The vocabulary has no token for byte 0x%02x at position %zu of the text.",
                    lead, start);
      throw UserError(sentence);
    }
    tokens.push_back(longest->id);
    start += longest->bytes.size();
  }
  return tokens;
}

std::vector<int> Tokenizer::padding() const {
  std::vector<int> ids;
  for (size_t id = 1; id < bytes_.size(); ++id) {  // 0 is the end of text
    if (bytes_[id].empty()) ids.push_back(id);
  }
  return ids;
}
