// JSON that comes in, read by tvm-ffi's parser, and strings as JSON that goes out.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

// A value. What it is asked for and is not raises UserError, which names it by its place.
class Json {
 public:
  // Raises UserError for what is no JSON, or nested deeper than any that this program reads; `place` names it.
  static Json parse(std::string_view text, std::string place);

  // Whether an object has something under this key other than null.
  bool has(const std::string& key) const;
  Json at(const std::string& key) const;
  std::vector<Json> list() const;
  std::vector<std::pair<std::string, Json>> members() const;

  std::string text() const;
  double number() const;
  int64_t integer() const;
  bool truth() const;

  bool is_text() const;
  bool is_list() const;
  bool is_object() const;

  const std::string& place() const { return place_; }

 private:
  struct Value;
  Json(std::shared_ptr<const Value> value, std::string place) : value_(std::move(value)), place_(std::move(place)) {}
  [[noreturn]] void refuse(const char* expected) const;

  std::shared_ptr<const Value> value_;
  std::string place_;
};

// UTF-8 in quotes.
std::string json_string(std::string_view text);
