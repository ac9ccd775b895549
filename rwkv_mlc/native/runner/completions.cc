#include "completions.h"

#include <algorithm>

#include "error.h"
#include "utf8.h"

namespace {

constexpr size_t kKeptBytes = 128 << 20, kLeastKept = 2, kMostKept = 64;

std::string content_of(const Json& message) {
  const Json content = message.at("content");
  if (content.is_text()) return content.text();
  std::string text;
  for (const Json& part : content.list()) {
    if (part.at("type").text() != "text") throw UserError("Messages hold text alone.");
    text += part.at("text").text();
  }
  return text;
}

// What a conversation has come to, as a key.
std::string key_of(const CompletionRequest& request, size_t turns) {
  std::string key = request.has_system ? json_string(request.system) : "";
  for (size_t i = 0; i < turns; ++i) key += "\n" + json_string(request.turns[i].content);
  return key;
}

}  // namespace

CompletionRequest CompletionRequest::parse(std::string_view body, const Engine& engine, const SamplingParams& defaults) {
  if (!is_utf8(body)) throw UserError("The request is not UTF-8.");
  const Json json = Json::parse(body, "the request");
  CompletionRequest request;
  request.params = defaults;
  for (const Json& message : json.at("messages").list()) {
    const std::string role = message.at("role").text(), content = content_of(message);
    if (role == "system" || role == "developer") {
      if (!request.turns.empty()) throw UserError("A system message comes before all others.");
      request.system += (request.has_system ? "\n" : "") + content;
      request.has_system = true;
      continue;
    }
    const std::string expected = request.turns.size() % 2 ? "assistant" : "user";
    if (role != expected) throw UserError("The messages should be the user's and the assistant's by turns, the user's first.");
    request.turns.push_back({role, content});
  }
  if (request.turns.size() % 2 == 0) throw UserError("The last message should be the user's.");

  SamplingParams& params = request.params;
  const auto number = [&](const char* name, double& value) {
    if (json.has(name)) value = json.at(name).number();
  };
  number("temperature", params.temperature);
  number("top_p", params.top_p);
  number("presence_penalty", params.presence_penalty);
  number("frequency_penalty", params.frequency_penalty);
  number("repetition_penalty", params.repetition_penalty);
  number("penalty_decay", params.penalty_decay);
  if (json.has("top_k")) params.top_k = json.at("top_k").integer();
  if (json.has("seed")) params.seed = json.at("seed").integer();
  for (const char* name : {"max_tokens", "max_completion_tokens"}) {
    if (json.has(name)) params.max_tokens = json.at(name).integer();
  }
  if (json.has("stop")) {
    const Json stop = json.at("stop");
    if (stop.is_text()) params.stop.push_back(stop.text());
    if (!stop.is_text()) {
      for (const Json& text : stop.list()) params.stop.push_back(text.text());
    }
  }
  params.check();
  if (json.has("think")) request.think = json.at("think").text();
  engine.form.think_mode(request.think);
  if (json.has("n") && json.at("n").integer() != 1) throw UserError("There is one answer to a request; leave \"n\" out.");
  if (json.has("tools") && !json.at("tools").list().empty()) throw UserError("This server knows no tools; leave them out.");
  if (json.has("stream")) request.stream = json.at("stream").truth();
  if (json.has("stream_options") && json.at("stream_options").has("include_usage")) {
    request.usage = json.at("stream_options").at("include_usage").truth();
  }
  return request;
}

Completions::Completions(Engine& engine) : engine_(engine) {
  size_t bytes = 1;
  for (const StatePart& part : engine.model.new_state().parts) bytes += part.values.size_bytes();
  most_kept_ = std::clamp(kKeptBytes / bytes, kLeastKept, kMostKept);
}

// The state after all turns but the last: a copy of one that is kept, or read anew from where the turns part from it.
State Completions::state_before(const Template& form, const CompletionRequest& request) {
  size_t known = request.turns.size() - 1;
  State state;
  for (;; known -= 2) {
    const auto found = std::find_if(kept_.begin(), kept_.end(),
                                    [&](const Kept& kept) { return kept.turns == key_of(request, known); });
    if (found != kept_.end()) {
      kept_.splice(kept_.begin(), kept_, found);
      state = engine_.model.copy(found->state);
      break;
    }
    if (known == 0) {
      state = engine_.model.new_state();
      engine_.read(form.system_prompt(), state);
      keep(key_of(request, 0), state);
      break;
    }
  }
  if (known + 1 == request.turns.size()) return state;
  std::string text;
  for (; known + 1 < request.turns.size(); known += 2) {
    text += form.user_turn(request.turns[known].content, nullptr) + form.told(request.turns[known + 1].content);
  }
  engine_.read(text, state);
  keep(key_of(request, known), state);
  return state;
}

void Completions::keep(const std::string& turns, const State& state) {
  kept_.remove_if([&](const Kept& kept) { return kept.turns == turns; });
  kept_.push_front({turns, engine_.model.copy(state)});
  if (kept_.size() > most_kept_) kept_.pop_back();
}

Completion Completions::answer(const CompletionRequest& request, const std::function<bool(const Piece&)>& sink) {
  const std::lock_guard<std::mutex> lock(one_at_a_time_);
  Template form = engine_.form;
  if (request.has_system) form.system_message = request.system;
  State state = state_before(form, request);
  const std::string& message = request.turns.back().content;
  const ThinkMode* mode = form.think_mode(request.think);
  ChatRules rules{form, {}};
  if (mode) rules.thinking = ThinkingTurn{mode->opening, form.user_turn(message, nullptr)};
  Answer answer(engine_.model, engine_.end_ids, engine_.encode(form.user_turn(message, mode), state), request.params, state,
                true, std::move(rules));
  // The space after "Assistant:" is the model's.
  bool go_on = true, started = form.assistant.empty();
  Completion done;
  while (go_on && !answer.finished()) {
    for (Piece& piece : answer.next()) {
      if (!piece.thought && !started) {
        piece.text.erase(0, std::min(piece.text.find_first_not_of(' '), piece.text.size()));
        started = !piece.text.empty();
      }
      (piece.thought ? done.reasoning : done.text) += piece.text;
      if (!piece.text.empty()) go_on = sink(piece) && go_on;
    }
  }
  if (!answer.finished()) answer.settle();
  CompletionRequest after = request;
  after.turns.push_back({"assistant", done.text});
  keep(key_of(after, after.turns.size()), state);
  done.finish_reason = answer.finished() ? answer.finish_reason : "stop";
  done.prompt_tokens = answer.prompt_tokens();
  done.tokens = answer.tokens.size();
  return done;
}
