#include "text_stream.h"

#include <algorithm>
#include <optional>

std::string TextStream::push(std::string_view bytes) {
  if (stopped_) return "";
  pending_ += bytes;
  std::optional<std::pair<size_t, size_t>> first;  // the earliest end, and of those that end there the earliest start
  for (const std::string& stop : stops_) {
    const size_t start = pending_.find(stop);
    if (start == std::string::npos) continue;
    const std::pair<size_t, size_t> found{start + stop.size(), start};
    if (!first || found < *first) first = found;
  }
  if (first) {
    stopped_ = true;
    return release(first->second, true);
  }
  return release(pending_.size() - possible_stop(), false);
}

std::string TextStream::finish() { return stopped_ ? "" : release(pending_.size(), true); }

size_t TextStream::possible_stop() const {
  size_t longest = 0;
  for (const std::string& stop : stops_) longest = std::max(longest, stop.size() - 1);
  for (size_t n = std::min(longest, pending_.size()); n > 0; --n) {
    const std::string_view tail = std::string_view(pending_).substr(pending_.size() - n);
    for (const std::string& stop : stops_) {
      if (stop.starts_with(tail)) return n;
    }
  }
  return 0;
}

std::string TextStream::release(size_t count, bool last) {
  const std::string bytes = pending_.substr(0, count);
  pending_.erase(0, count);
  released_ += bytes;
  return decoder_.push(bytes, last);
}
