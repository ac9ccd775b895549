// Bytes of tokens to text as it becomes certain: docs/generation.md, "Stop strings and text".
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "utf8.h"

class TextStream {
 public:
  explicit TextStream(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // The text that bytes make certain, none after a stop string was met.
  std::string push(std::string_view bytes);
  // The rest, when no more bytes follow.
  std::string finish();

  bool stopped() const { return stopped_; }
  // The bytes of the text so far, with those of an incomplete character at its end.
  const std::string& released() const { return released_; }
  // What may be the beginning of a stop string, after these.
  const std::string& held() const { return pending_; }

 private:
  size_t possible_stop() const;
  std::string release(size_t count, bool last);

  std::vector<std::string> stops_;
  std::string pending_, released_;
  Utf8Decoder decoder_;
  bool stopped_ = false;
};
