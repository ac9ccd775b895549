#include "terminal.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <iostream>

#include "error.h"
#include "utf8.h"

namespace {

constexpr const char* kCommands = R"(You can use the following special commands:
  /help               print the special commands
  /exit               leave, as does Ctrl-D
  /stats              print the speed of reading and writing
  /retry              answer the last message once more
  /reset              start the conversation afresh
  /set key=value;...  change settings, such as temperature=0.5;top_p=0.8;seed=23;max_tokens=100;stop=a,b;think=on
  /save FILE          write the state of the conversation
  /load FILE          go on from a saved state
Messages may begin with a path, such as /home/me/x; where one begins like a command, //help sends "/help".
Ctrl-C stops an answer.
)";

std::atomic<bool> interrupted{false};

void note_interrupts() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted = true; };
  sigaction(SIGINT, &action, nullptr);
}

bool on_terminal() { return isatty(STDOUT_FILENO); }

void print(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

void print_piece(const Piece& piece) {
  if (!on_terminal()) return print(piece.text);
  print(piece.thought ? "\033[2m" + escaped(piece.text) + "\033[22m" : escaped(piece.text));
}

// An answer as it is shown: its thoughts between their tags, and without the space after "Assistant:", which the model writes
// itself.
class Shown {
 public:
  explicit Shown(const Template& form) : form_(form), started_(form.assistant.empty()) {}

  void piece(const Piece& piece) {
    if (piece.thought != thinking_ && form_.thinking) {
      thinking_ = piece.thought;
      print_piece({thinking_ ? form_.thinking->begin + "\n" : "\n" + form_.thinking->end + "\n", true});
    }
    if (thinking_) return print_piece(piece);
    const size_t start = started_ ? 0 : std::min(piece.text.find_first_not_of(' '), piece.text.size());
    started_ = started_ || start < piece.text.size();
    print_piece({piece.text.substr(start)});
  }

 private:
  const Template& form_;
  bool started_, thinking_ = false;
};

std::string speed(const Engine& engine) {
  const Stats& stats = engine.model.stats;
  char text[256];
  std::snprintf(text, sizeof text, "prefill: %.1f tok/s, decode: %.1f tok/s, code for %s",
                stats.prefill_seconds > 0 ? stats.prefilled / stats.prefill_seconds : 0,
                stats.decode_seconds > 0 ? stats.decoded / stats.decode_seconds : 0, engine.model.level().c_str());
  return text;
}

void print_stats(const Engine& engine, const Answer& answer) {
  std::fprintf(stderr, "prompt: %zu tokens, answer: %zu tokens (%s), seed: %llu, %s\n", answer.prompt_tokens(),
               answer.tokens.size(), answer.finish_reason.c_str(), static_cast<unsigned long long>(answer.seed()),
               speed(engine).c_str());
}

void say_error(const std::string& sentence) { std::fprintf(stderr, "%s\n", escaped(sentence).c_str()); }

std::vector<std::string> split(const std::string& text, char by) {
  std::vector<std::string> parts;
  for (size_t start = 0; start <= text.size();) {
    const size_t end = std::min(text.find(by, start), text.size());
    parts.push_back(text.substr(start, end - start));
    start = end + 1;
  }
  return parts;
}

std::string trimmed(std::string_view text) { return std::string(strip_left(strip_right(text))); }

class Session {
 public:
  Session(Engine& engine, const Options& options, SamplingParams params)
      : engine_(engine), options_(options), chat_(engine, std::move(params)) {
    engine.form.think_mode(options.think);
    chat_.think = options.think;
    if (options.state) chat_.load(*options.state);
  }

  // Runs a command or answers a message; whether to go on.
  bool handle(const std::string& line) {
    interrupted = false;
    try {
      const std::string word = line.substr(0, line.find(' '));
      const std::string argument = trimmed(std::string_view(line).substr(word.size()));
      if (word == "/exit") return false;
      if (word == "/help") {
        print(kCommands);
      } else if (word == "/stats") {
        print(speed(engine_) + "\n");
      } else if (word == "/reset") {
        chat_.reset();
        print("RESET CHAT SUCCESS\n");
      } else if (word == "/retry") {
        answer([&](const Chat::Sink& sink) { return chat_.retry(sink); });
      } else if (word == "/set") {
        set_all(argument);
      } else if (word == "/save") {
        chat_.save(file(argument));
        print("Saved the conversation to " + argument + "\n");
      } else if (word == "/load") {
        chat_.load(file(argument));
        print("Go on from " + argument + "\n");
      } else if (is_command(word)) {
        throw UserError("There is no command " + word + "; /help lists the commands, and /" + word + " sends " + word +
                        " as text.");
      } else if (!trimmed(line).empty()) {
        const std::string message = line.starts_with("//") ? line.substr(1) : line;
        answer([&](const Chat::Sink& sink) {
          return chat_.send(message, sink, [](int64_t, int64_t) { return !interrupted; });
        });
      }
    } catch (const UserError& error) {
      say_error(error.what());
    }
    return true;
  }

 private:
  // Whether a word is a mistyped command rather than a path.
  static bool is_command(const std::string& word) {
    return word.size() > 1 && word[0] == '/' &&
           word.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", 1) == std::string::npos;
  }

  static const std::string& file(const std::string& name) {
    if (name.empty()) throw UserError("Give the name of a file.");
    return name;
  }

  template <class Asking>
  void answer(Asking ask) {
    Shown shown(engine_.form);
    std::string label = engine_.form.assistant.empty() ? "" : engine_.form.assistant + ": ";
    const auto sink = [&](const Piece& piece) {
      print(std::exchange(label, ""));
      shown.piece(piece);
      return !interrupted;
    };
    try {
      if (!ask(sink)) std::fprintf(stderr, "Stopped before the whole message was read; it counts as never sent.\n");
    } catch (...) {
      print("\n");
      throw;
    }
    print("\n");
    if (options_.stats && chat_.answer) print_stats(engine_, *chat_.answer);
    warn_of_length();
  }

  void warn_of_length() {
    const bool longer = chat_.state.length > engine_.model.context_length();
    if (longer && !warned_) {
      std::fprintf(stderr,
                   "The conversation has %lld tokens, more than the %lld of the texts that the model was trained on; where it "
                   "gets worse, /reset starts afresh.\n",
                   static_cast<long long>(chat_.state.length), static_cast<long long>(engine_.model.context_length()));
    }
    warned_ = longer;
  }

  void set_all(const std::string& argument) {
    SamplingParams params = chat_.params;
    std::optional<std::string> think = chat_.think;
    for (const std::string& part : split(argument, ';')) {
      if (trimmed(part).empty()) continue;
      const size_t sign = part.find('=');
      if (sign == std::string::npos) throw UserError("/set takes key=value, not " + part + ".");
      const std::string name = trimmed(part.substr(0, sign)), value = trimmed(part.substr(sign + 1));
      if (name == "stop") {
        params.stop = engine_.form.stops;
        for (const std::string& stop : split(value, ',')) {
          if (!stop.empty()) params.stop.push_back(parse_stop(stop));
        }
      } else if (name == "think") {
        think = value == "none" ? std::nullopt : std::optional(value);
      } else {
        set(params, name, value);
      }
    }
    engine_.form.think_mode(think);
    chat_.params = params;
    chat_.think = think;
    char text[320];
    std::snprintf(text, sizeof text,
                  "temperature=%g; top_p=%g; top_k=%lld; presence_penalty=%g; frequency_penalty=%g; repetition_penalty=%g; "
                  "penalty_decay=%g; seed=%s; max_tokens=%lld\n",
                  params.temperature, params.top_p, static_cast<long long>(params.top_k), params.presence_penalty,
                  params.frequency_penalty, params.repetition_penalty, params.penalty_decay,
                  params.seed ? std::to_string(*params.seed).c_str() : "none", static_cast<long long>(params.max_tokens));
    print(text);
  }

  Engine& engine_;
  const Options& options_;
  Chat chat_;
  bool warned_ = false;
};

}  // namespace

int run_chat(Engine& engine, const Options& options, SamplingParams params) {
  note_interrupts();
  Session session(engine, options, std::move(params));
  const bool typed = isatty(STDIN_FILENO) && on_terminal();
  const std::string label = engine.form.user.empty() ? "> " : engine.form.user + ": ";
  if (typed) print(engine.name + "; /help lists the commands.\n");
  for (;;) {
    if (typed) print(label);
    std::string line;
    if (!std::getline(std::cin, line)) {
      if (!interrupted.exchange(false) || !typed) break;
      std::cin.clear();  // Ctrl-C at an empty line
      std::clearerr(stdin);
      print("\n");
      continue;
    }
    if (line.ends_with('\r')) line.pop_back();
    if (!session.handle(line)) break;
  }
  if (typed) print("\n");
  return 0;
}

int run_prompt(Engine& engine, const Options& options, SamplingParams params) {
  if (options.chat) {
    note_interrupts();
    Chat chat(engine, std::move(params));
    engine.form.think_mode(options.think);
    chat.think = options.think;
    if (options.state) chat.load(*options.state);
    Shown shown(engine.form);
    chat.send(*options.prompt, [&](const Piece& piece) {
      shown.piece(piece);
      return !interrupted;
    });
    print("\n");
    if (options.stats) print_stats(engine, *chat.answer);
    if (options.save_state) chat.save(*options.save_state);
    return 0;
  }
  if (options.think) throw UserError("--think is said in the model's chat template; give --chat, too.");
  State state = options.state ? engine.load(*options.state) : engine.model.new_state();
  Answer answer(engine.model, engine.end_ids, engine.encode(*options.prompt, state), params, state,
                options.save_state.has_value());
  while (!answer.finished()) {
    for (const Piece& piece : answer.next()) print_piece(piece);
  }
  print("\n");
  if (options.stats) print_stats(engine, answer);
  if (options.save_state) engine.save(state, *options.save_state);
  return 0;
}
