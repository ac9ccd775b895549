#include "engine.h"

#include "error.h"
#include "state_file.h"

namespace {

SamplingParams sampling(const Json& config) {
  SamplingParams params;
  const auto number = [&](const char* name, double& value) {
    if (config.has(name)) value = config.at(name).number();
  };
  number("temperature", params.temperature);
  number("top_p", params.top_p);
  number("presence_penalty", params.presence_penalty);
  number("frequency_penalty", params.frequency_penalty);
  number("repetition_penalty", params.repetition_penalty);
  number("penalty_decay", params.penalty_decay);
  if (config.has("top_k")) params.top_k = config.at("top_k").integer();
  if (config.has("max_tokens")) params.max_tokens = config.at("max_tokens").integer();
  if (config.has("seed")) params.seed = config.at("seed").integer();
  params.check();
  return params;
}

}  // namespace

Engine::Engine(const Pack& pack)
    : name(pack.index().at("name").text()),
      source_sha256(pack.index().at("source_sha256").text()),
      quantization(pack.index().at("quantization").text()),
      model(pack),
      form(pack.index().at("chat_config").at("conv_template")),
      defaults(sampling(pack.index().at("chat_config"))),
      begin_id(int(pack.index().at("begin_id").integer())) {
  for (const Json& id : pack.index().at("end_ids").list()) end_ids.insert(int(id.integer()));
}

std::vector<int> Engine::encode(std::string_view prompt, const State& state) const {
  std::vector<int> tokens = model.tokenizer().encode(prompt);
  if (tokens.empty() && !state.read) tokens.push_back(begin_id);
  return tokens;
}

SamplingParams Engine::chat_params() const {
  SamplingParams params = defaults;
  params.stop = form.stops;
  return params;
}

void Engine::read(std::string_view text, State& state) {
  if (text.empty()) return;
  Answer reading(model, end_ids, model.tokenizer().encode(text), defaults, state, false);
  reading.read_prompt();
}

void Engine::save(const State& state, const std::string& path) const { save_state(*this, state, path); }

State Engine::load(const std::string& path) const { return load_state(*this, path); }

Chat::Chat(Engine& engine, SamplingParams params) : params(std::move(params)), engine_(engine) { reset(); }

void Chat::reset() {
  answer.reset();
  before_.reset();
  sent_.reset();
  state = engine_.model.new_state();
  engine_.read(engine_.form.system_prompt(), state);
}

bool Chat::send(const std::string& text, const Sink& sink, const std::function<bool(int64_t, int64_t)>& progress) {
  const Template& form = engine_.form;
  const ThinkMode* mode = form.think_mode(think);
  ChatRules rules{form, {}};
  if (mode) rules.thinking = ThinkingTurn{mode->opening, form.user_turn(text, nullptr)};
  const std::vector<int> prompt = engine_.encode(form.user_turn(text, mode), state);
  before_ = engine_.model.copy(state);
  sent_ = text;
  answer.emplace(engine_.model, engine_.end_ids, prompt, params, state, true, std::move(rules));
  bool go_on;
  try {
    go_on = answer->read_prompt(progress);
  } catch (...) {
    go_on = false;
    state = std::move(*before_);
    before_.reset();
    sent_.reset();
    answer.reset();
    throw;
  }
  if (!go_on) {
    state = std::move(*before_);
    before_.reset();
    sent_.reset();
    answer.reset();
    return false;
  }
  while (go_on && !answer->finished()) {
    for (const Piece& piece : answer->next()) go_on = sink(piece) && go_on;
  }
  if (!answer->finished()) answer->settle();
  return true;
}

bool Chat::retry(const Sink& sink) {
  if (!sent_) throw UserError("There is no message to be answered once more; send one.");
  const std::string text = *sent_;
  answer.reset();
  state = std::move(*before_);
  return send(text, sink);
}

void Chat::load(const std::string& path) {
  state = engine_.load(path);
  answer.reset();
  before_.reset();
  sent_.reset();
}
