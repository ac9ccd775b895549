#include "template.h"

#include <algorithm>

#include "error.h"
#include "utf8.h"

namespace {

constexpr std::string_view kSpace = " \t\n\v\f", kSpaceInLine = " \t\v\f";

std::string text_or(const Json& object, const char* key, const char* otherwise) {
  return object.has(key) ? object.at(key).text() : otherwise;
}

std::string replaced(std::string text, std::string_view what, std::string_view by) {
  for (size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += by.size()) text.replace(at, what.size(), by);
  return text;
}

}  // namespace

Template::Template(const Json& conversation)
    : system_message(text_or(conversation, "system_message", "")),
      user(conversation.at("roles").at("user").text()),
      assistant(conversation.at("roles").at("assistant").text()),
      name_(conversation.at("name").text()),
      system_template_(text_or(conversation, "system_template", "{system_message}")),
      user_template_("{user_message}"),
      assistant_template_("{assistant_message}"),
      content_sep_(text_or(conversation, "role_content_sep", "")),
      empty_sep_(text_or(conversation, "role_empty_sep", "")) {
  if (conversation.has("role_templates")) {
    const Json templates = conversation.at("role_templates");
    user_template_ = templates.at("user").text();
    assistant_template_ = templates.at("assistant").text();
  }
  for (const Json& sep : conversation.at("seps").list()) seps_.push_back(sep.text());
  if (seps_.empty()) throw UserError(conversation.at("seps").place() + " should not be empty.");
  if (conversation.has("messages")) {
    for (const Json& entry : conversation.at("messages").list()) {
      const std::vector<Json> pair = entry.list();
      if (pair.size() != 2) throw UserError(entry.place() + " should be a role and a text.");
      messages_.emplace_back(pair[0].text() == "user", pair[1].text());
    }
  }
  if (conversation.has("stop_str")) {
    for (const Json& stop : conversation.at("stop_str").list()) stops.push_back(stop.text());
  }
  if (conversation.has("stop_token_ids")) {
    for (const Json& id : conversation.at("stop_token_ids").list()) stop_tokens.push_back(id.integer());
  }
  if (conversation.has("think")) {
    const Json think = conversation.at("think");
    thinking = Thinking{think.at("begin").text(), think.at("end").text(), think.at("default").text(), {}};
    for (const auto& [name, mode] : think.at("modes").members()) {
      thinking->modes[name] = {mode.at("opening").text(), text_or(mode, "user_suffix", "")};
    }
  }
}

std::string Template::system_prompt() const {
  const std::string text = folded(system_message);
  std::string prompt = text.empty() ? "" : replaced(system_template_, "{system_message}", text);
  for (const auto& [of_user, content] : messages_) prompt += message(of_user, content);
  return prompt;
}

std::string Template::user_turn(const std::string& text, const ThinkMode* mode) const {
  const std::string opening = assistant + empty_sep_;
  if (!mode) return message(true, folded(text)) + opening;
  return message(true, folded(text) + mode->user_suffix) + opening + mode->opening;
}

std::string Template::after_answer(std::string_view answer) const {
  const std::string& separator = seps_.back();
  size_t begun = separator.size();
  while (!answer.ends_with(std::string_view(separator).substr(0, begun))) --begun;
  return separator.substr(begun);
}

std::string Template::told(const std::string& answer) const {
  const std::string before = content_sep_.starts_with(empty_sep_) ? content_sep_.substr(empty_sep_.size()) : content_sep_;
  const std::string text = answer.empty() ? "" : before + answer;
  return text + after_answer(text);
}

const ThinkMode* Template::think_mode(const std::optional<std::string>& name) const {
  if (!thinking) {
    if (name) throw UserError("The model's template, " + name_ + ", has no think mode; leave " + *name + " out.");
    return nullptr;
  }
  const auto found = thinking->modes.find(name ? *name : thinking->usual);
  if (found != thinking->modes.end()) return &found->second;
  std::string names;
  for (const auto& [known, mode] : thinking->modes) names += (names.empty() ? "" : ", ") + known;
  throw UserError("think must be one of " + names + ", not " + (name ? *name : thinking->usual) + ".");
}

// Where the separator is white space, it must not occur in a message.
std::string Template::folded(std::string_view text) const {
  if (!is_space(seps_[0])) return std::string(text);
  std::string lines = replaced(replaced(std::string(text), "\r\n", "\n"), "\r", "\n");
  const size_t start = lines.find_first_not_of(kSpace);
  if (start == std::string::npos) return "";
  lines = lines.substr(start, lines.find_last_not_of(kSpace) + 1 - start);
  std::string out;
  for (size_t at = 0; at < lines.size(); ++at) {
    out += lines[at];
    if (lines[at] != '\n') continue;
    // A run of line ends with nothing but white space between them becomes one.
    for (size_t next; (next = lines.find_first_not_of(kSpaceInLine, at + 1)) != std::string::npos && lines[next] == '\n';) {
      at = next;
    }
  }
  return out;
}

std::string Template::message(bool of_user, const std::string& content) const {
  const std::string text = of_user ? replaced(user_template_, "{user_message}", content)
                                   : replaced(assistant_template_, "{assistant_message}", content);
  return (of_user ? user : assistant) + content_sep_ + text + (of_user ? seps_.front() : seps_.back());
}
