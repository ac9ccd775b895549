#include "json.h"

#include <tvm/ffi/extra/json.h>

#include <cmath>
#include <cstdio>

#include "error.h"

namespace ffi = tvm::ffi;

namespace {

constexpr int kDeepest = 64;  // the parser calls itself for every level

int depth(std::string_view text) {
  int now = 0, deepest = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\') ++i;
      quoted = c != '"';
    } else if (c == '"') {
      quoted = true;
    } else if (c == '[' || c == '{') {
      deepest = std::max(deepest, ++now);
    } else if (c == ']' || c == '}') {
      --now;
    }
  }
  return deepest;
}

}  // namespace

struct Json::Value {
  ffi::Any any;
};

Json Json::parse(std::string_view text, std::string place) {
  if (depth(text) > kDeepest) throw UserError(place + " is nested too deeply.");
  ffi::String error;
  ffi::Any any = ffi::json::Parse(ffi::String(text.data(), text.size()), &error);
  if (!error.empty()) throw UserError(place + " is no JSON (" + std::string(error.data(), error.size()) + ").");
  return Json(std::make_shared<const Value>(Value{std::move(any)}), std::move(place));
}

void Json::refuse(const char* expected) const { throw UserError(place_ + " should be " + expected + "."); }

bool Json::has(const std::string& key) const {
  const auto object = value_->any.try_cast<ffi::json::Object>();
  if (!object) refuse("an object");
  const auto found = object->find(ffi::String(key));
  return found != object->end() && (*found).second != nullptr;
}

Json Json::at(const std::string& key) const {
  if (!has(key)) throw UserError(place_ + " lacks \"" + key + "\".");
  const auto object = value_->any.cast<ffi::json::Object>();
  return Json(std::make_shared<const Value>(Value{object.at(ffi::String(key))}), "\"" + key + "\" of " + place_);
}

std::vector<Json> Json::list() const {
  const auto array = value_->any.try_cast<ffi::json::Array>();
  if (!array) refuse("a list");
  std::vector<Json> values;
  for (const ffi::Any& any : *array) {
    values.push_back(Json(std::make_shared<const Value>(Value{any}), "an entry of " + place_));
  }
  return values;
}

std::vector<std::pair<std::string, Json>> Json::members() const {
  const auto object = value_->any.try_cast<ffi::json::Object>();
  if (!object) refuse("an object");
  std::vector<std::pair<std::string, Json>> found;
  for (const auto& [key, any] : *object) {
    const std::string name = key.cast<ffi::String>();
    found.emplace_back(name, Json(std::make_shared<const Value>(Value{any}), "\"" + name + "\" of " + place_));
  }
  return found;
}

std::string Json::text() const {
  if (!is_text()) refuse("text");
  return value_->any.cast<ffi::String>();
}

double Json::number() const {
  if (value_->any.type_index() == ffi::TypeIndex::kTVMFFIInt) return double(value_->any.cast<int64_t>());
  if (value_->any.type_index() != ffi::TypeIndex::kTVMFFIFloat) refuse("a number");
  return value_->any.cast<double>();
}

int64_t Json::integer() const {
  if (value_->any.type_index() != ffi::TypeIndex::kTVMFFIInt) refuse("an integer");
  return value_->any.cast<int64_t>();
}

bool Json::truth() const {
  if (value_->any.type_index() != ffi::TypeIndex::kTVMFFIBool) refuse("true or false");
  return value_->any.cast<bool>();
}

bool Json::is_text() const { return value_->any.try_cast<ffi::String>().has_value(); }
bool Json::is_list() const { return value_->any.try_cast<ffi::json::Array>().has_value(); }
bool Json::is_object() const { return value_->any.try_cast<ffi::json::Object>().has_value(); }

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    switch (c) {
      case '"': out += "\\\""; break;
      case '\\': out += "\\\\"; break;
      case '\n': out += "\\n"; break;
      case '\r': out += "\\r"; break;
      case '\t': out += "\\t"; break;
      default:
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
          char code[8];
          std::snprintf(code, sizeof code, "\\u%04x", c);
          out += code;
        } else {
          out += c;
        }
    }
  }
  return out + '"';
}
