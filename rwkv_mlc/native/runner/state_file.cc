#include "state_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <set>

#include "error.h"

namespace {

constexpr const char* kFormat = "rwkv_mlc state 1";
constexpr uint64_t kLargestHeader = 100'000'000;  // of safetensors

struct Stored {
  std::string name;
  std::vector<int64_t> shape;
  const char* dtype;
  const void* data;
  size_t size;
};

std::string header(const Engine& engine, const State& state, const std::vector<Stored>& tensors) {
  std::string text = "{\"__metadata__\":{\"format\":" + json_string(kFormat) +
                     ",\"model\":" + json_string(engine.source_sha256) + ",\"name\":" + json_string(engine.name) +
                     ",\"quantization\":" + json_string(engine.quantization) + ",\"tokens\":\"" +
                     std::to_string(state.length) + "\"}";
  size_t offset = 0;
  for (const Stored& tensor : tensors) {
    text += "," + json_string(tensor.name) + ":{\"dtype\":\"" + tensor.dtype + "\",\"shape\":[";
    for (size_t i = 0; i < tensor.shape.size(); ++i) text += (i ? "," : "") + std::to_string(tensor.shape[i]);
    text += "],\"data_offsets\":[" + std::to_string(offset) + "," + std::to_string(offset + tensor.size) + "]}";
    offset += tensor.size;
  }
  text += "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

[[noreturn]] void refuse(const std::string& path, const std::string& reason) {
  throw UserError("The state " + path + " cannot be read (" + reason + "); give a file written by /save or --save-state.");
}

std::string content(const std::string& path) {
  struct stat status;
  if (stat(path.c_str(), &status)) refuse(path, std::strerror(errno));
  if (!S_ISREG(status.st_mode)) refuse(path, "it is no file");
  std::ifstream file(path, std::ios::binary);
  std::string bytes(status.st_size, '\0');
  if (!file.read(bytes.data(), bytes.size())) refuse(path, "it ends too early");
  return bytes;
}

}  // namespace

void save_state(const Engine& engine, const State& state, const std::string& path) {
  std::vector<Stored> tensors;
  for (const StatePart& part : state.parts) {
    tensors.push_back({part.name, part.shape, "F32", part.values.data(), part.values.size_bytes()});
  }
  if (state.last) {
    const auto& [logits, counts] = *state.last;
    const int64_t counted = counts.ids().size();
    tensors.push_back({"logits", {int64_t(logits.values.size())}, "F32", logits.values.data(), logits.values.size_bytes()});
    tensors.push_back({"counts", {counted}, "F32", counts.counts().data(), counted * sizeof(float)});
    tensors.push_back({"counted_ids", {counted}, "I32", counts.ids().data(), counted * sizeof(int32_t)});
  }
  std::sort(tensors.begin(), tensors.end(), [](const Stored& a, const Stored& b) {
    const int order = std::strcmp(a.dtype, b.dtype);
    return order ? order < 0 : a.name < b.name;
  });
  const std::string text = header(engine, state, tensors), partial = path + ".partial";
  const uint64_t size = text.size();
  std::ofstream file(partial, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(&size), sizeof size) << text;
  for (const Stored& tensor : tensors) file.write(static_cast<const char*>(tensor.data), tensor.size);
  file.close();
  if (!file || std::rename(partial.c_str(), path.c_str())) {
    const std::string reason = std::strerror(errno);
    unlink(partial.c_str());
    throw UserError("The state cannot be written to " + path + " (" + reason + ").");
  }
}

State load_state(const Engine& engine, const std::string& path) {
  const std::string file = content(path);
  uint64_t size;
  if (file.size() < sizeof size) refuse(path, "it ends too early");
  std::memcpy(&size, file.data(), sizeof size);
  if (size > kLargestHeader || size > file.size() - sizeof size) refuse(path, "it ends too early");
  const std::string_view data = std::string_view(file).substr(sizeof size + size);
  const Json head = Json::parse(std::string_view(file).substr(sizeof size, size), "The header of the state " + path);
  if (!head.is_object() || !head.has("__metadata__")) refuse(path, "it holds no saved state");
  const Json metadata = head.at("__metadata__");
  if (!metadata.has("format") || metadata.at("format").text() != kFormat) refuse(path, "it holds no saved state");
  if (metadata.at("model").text() != engine.source_sha256) {
    throw UserError(path + " is a state of " + metadata.at("name").text() + ", another model than " + engine.name +
                    "; a state means something only to the model that made it.");
  }
  const auto find = [&](const std::string& name, const char* dtype, const std::vector<int64_t>& shape) {
    const Json entry = head.at(name);
    const std::vector<Json> offsets = entry.at("data_offsets").list(), extents = entry.at("shape").list();
    size_t expected = sizeof(float);
    for (const int64_t extent : shape) expected *= extent;
    bool fits = entry.at("dtype").text() == dtype && offsets.size() == 2 && extents.size() == shape.size();
    for (size_t i = 0; fits && i < shape.size(); ++i) fits = extents[i].integer() == shape[i];
    const int64_t start = fits ? offsets[0].integer() : 0, end = fits ? offsets[1].integer() : 0;
    fits = fits && start >= 0 && end >= start && end <= int64_t(data.size()) && size_t(end - start) == expected;
    if (!fits) throw UserError("The state " + path + " does not have this model's shapes; it is damaged.");
    return data.substr(start, expected);
  };
  State state = engine.model.new_state();
  for (const StatePart& part : state.parts) {
    const std::string_view bytes = find(part.name, "F32", part.shape);
    std::memcpy(part.values.data(), bytes.data(), bytes.size());
  }
  state.read = true;
  const std::string tokens = metadata.has("tokens") ? metadata.at("tokens").text() : "0";
  char* end;
  errno = 0;
  state.length = std::strtoll(tokens.c_str(), &end, 10);
  if (tokens.empty() || *end || errno || state.length < 0) {
    throw UserError("The state " + path + " does not say how many tokens it has read; it is damaged.");
  }
  if (!head.has("logits")) return state;
  const int64_t vocab_size = engine.model.vocab_size();
  std::vector<float> logits(vocab_size);
  std::memcpy(logits.data(), find("logits", "F32", {vocab_size}).data(), logits.size() * sizeof(float));
  const std::vector<Json> extents = head.at("counted_ids").at("shape").list();
  const int64_t counted = extents.empty() ? 0 : std::clamp<int64_t>(extents[0].integer(), 0, vocab_size);
  std::vector<int32_t> ids(counted);
  std::vector<float> counts(counted);
  std::memcpy(ids.data(), find("counted_ids", "I32", {counted}).data(), counted * sizeof(int32_t));
  std::memcpy(counts.data(), find("counts", "F32", {counted}).data(), counted * sizeof(float));
  std::set<int32_t> seen;
  for (int64_t i = 0; i < counted; ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size || !(counts[i] > 0) || !seen.insert(ids[i]).second) {
      throw UserError("The state " + path + " counts tokens that cannot have been chosen; it is damaged.");
    }
  }
  state.last = Ending{engine.model.logits(logits), Counts(std::move(ids), std::move(counts))};
  return state;
}
