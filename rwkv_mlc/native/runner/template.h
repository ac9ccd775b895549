// The prompt template of a chat: docs/generation.md, "Templates" and "Thoughts".
#pragma once
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"

struct ThinkMode {
  std::string opening, user_suffix;
};

struct Thinking {
  std::string begin, end, usual;  // `usual` names the mode where none is asked for
  std::map<std::string, ThinkMode> modes;
};

class Template {
 public:
  explicit Template(const Json& conversation);

  std::string system_prompt() const;
  // A message of the user up to where the model goes on; without a mode as later turns have it.
  std::string user_turn(const std::string& text, const ThinkMode* mode) const;
  // What an answer is followed by, but for what it ends with of that.
  std::string after_answer(std::string_view answer) const;
  // An answer without thoughts and what closes it, as later turns have them.
  std::string told(const std::string& answer) const;
  // That of this name, the template's own for none; null where its models do not think first. Raises UserError for a mode that
  // there is not.
  const ThinkMode* think_mode(const std::optional<std::string>& name) const;

  std::string system_message;
  std::string user, assistant;  // their names
  std::vector<std::string> stops;
  std::vector<int64_t> stop_tokens;
  std::optional<Thinking> thinking;

 private:
  std::string folded(std::string_view text) const;
  std::string message(bool of_user, const std::string& content) const;

  std::string name_, system_template_, user_template_, assistant_template_, content_sep_, empty_sep_;
  std::vector<std::string> seps_;
  std::vector<std::pair<bool, std::string>> messages_;  // whether the user's
};
