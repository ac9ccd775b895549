#include "options.h"

#include <cctype>
#include <cerrno>
#include <cmath>
#include <cstdlib>

#include "error.h"
#include "utf8.h"

const char* const kHelp = R"(Talks with the model in this file.

  (nothing)              a conversation in the terminal, or line by line from a pipe
  --prompt TEXT          print what the model writes after a prompt, and end
  --chat                 put the prompt into the model's chat template

  --system TEXT          system message, in place of the template's
  --think MODE           how much the model thinks before it answers, where its template has that
  --state FILE           go on from a saved state
  --save-state FILE      write the state after exactly the prompt and the text
  --threads N            threads of the kernels, in place of one a core
  --stats                print counts, seed and speed on stderr

Sampling, where not given as the model's configuration says:
  --temperature X  --top-p X  --top-k N  --presence-penalty X  --frequency-penalty X  --repetition-penalty X
  --penalty-decay X  --seed N  --max-tokens N  --stop TEXT (several times; \n is a line end, \xNN a byte)

  --help  --version  --licenses
)";

namespace {

constexpr const char* kSettings[] = {"temperature",        "top_p",         "top_k", "presence_penalty", "frequency_penalty",
                                     "repetition_penalty", "penalty_decay", "seed",  "max_tokens"};

bool is_setting(const std::string& name) {
  for (const char* known : kSettings) {
    if (name == known) return true;
  }
  return false;
}

double real_number(const std::string& name, const std::string& text) {
  char* end;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end || std::isspace(static_cast<unsigned char>(text[0])) || !std::isfinite(value)) {
    throw UserError(name + " must be a number, not " + text + ".");
  }
  return value;
}

}  // namespace

int64_t whole_number(const std::string& name, const std::string& text, int64_t low, int64_t high) {
  char* end;
  errno = 0;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end || errno || std::isspace(static_cast<unsigned char>(text[0])) || value < low || value > high) {
    throw UserError(name + " must be an integer from " + std::to_string(low) + " to " + std::to_string(high) + ", not " + text +
                    ".");
  }
  return value;
}

void set(SamplingParams& params, const std::string& name, const std::string& value) {
  constexpr int64_t kMost = 2147483647;
  if (name == "temperature") {
    params.temperature = real_number(name, value);
  } else if (name == "top_p") {
    params.top_p = real_number(name, value);
  } else if (name == "top_k") {
    params.top_k = whole_number(name, value, 0, kMost);
  } else if (name == "presence_penalty") {
    params.presence_penalty = real_number(name, value);
  } else if (name == "frequency_penalty") {
    params.frequency_penalty = real_number(name, value);
  } else if (name == "repetition_penalty") {
    params.repetition_penalty = real_number(name, value);
  } else if (name == "penalty_decay") {
    params.penalty_decay = real_number(name, value);
  } else if (name == "max_tokens") {
    params.max_tokens = whole_number(name, value, 1, kMost);
  } else if (name == "seed" && value == "none") {
    params.seed.reset();
  } else if (name == "seed") {
    char* end;
    errno = 0;
    const unsigned long long seed = std::strtoull(value.c_str(), &end, 10);
    if (value.empty() || !std::isdigit(static_cast<unsigned char>(value[0])) || *end || errno) {
      throw UserError("seed must be an integer from 0 to 18446744073709551615, not " + value + ".");
    }
    params.seed = seed;
  } else {
    std::string names;
    for (const char* known : kSettings) names += std::string(names.empty() ? "" : ", ") + known;
    throw UserError("There is no setting " + name + "; the settings are " + names + ".");
  }
  params.check();
}

std::string parse_stop(const std::string& text) {
  std::string meant;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\') {
      meant += text[i];
      continue;
    }
    const char name = ++i < text.size() ? text[i] : '\0';
    if (name == 'x' && i + 2 < text.size() && std::isxdigit(static_cast<unsigned char>(text[i + 1])) &&
        std::isxdigit(static_cast<unsigned char>(text[i + 2]))) {
      meant += static_cast<char>(std::stoi(text.substr(i + 1, 2), nullptr, 16));
      i += 2;
    } else if (name == 'n') {
      meant += '\n';
    } else if (name == 'r') {
      meant += '\r';
    } else if (name == 't') {
      meant += '\t';
    } else if (name == '\\') {
      meant += '\\';
    } else {
      throw UserError("A stop string has a backslash that means nothing: in it \\n is a line end, \\t a tab, \\\\ a backslash, "
                      "\\xNN a byte.");
    }
  }
  if (!is_utf8(meant)) throw UserError("The stop string " + text + " is not UTF-8; stop strings are text.");
  return meant;
}

Options Options::parse(int count, char** words) {
  Options options;
  for (int i = 1; i < count; ++i) {
    std::string flag = words[i];
    std::optional<std::string> joined;
    if (const size_t sign = flag.find('='); flag.starts_with("--") && sign != std::string::npos) {
      joined = flag.substr(sign + 1);
      flag.resize(sign);
    }
    const auto value = [&]() -> std::string {
      if (joined) return *std::exchange(joined, {});
      if (++i == count) throw UserError(flag + " wants a value; --help lists the flags.");
      return words[i];
    };
    std::string name = flag.starts_with("--") ? flag.substr(2) : "";
    for (char& c : name) c = c == '-' ? '_' : c;
    if (is_setting(name) && flag.find('_') == std::string::npos) {
      options.settings.emplace_back(name, value());
    } else if (flag == "--prompt") {
      options.prompt = value();
    } else if (flag == "--chat") {
      options.chat = true;
    } else if (flag == "--system") {
      options.system = value();
    } else if (flag == "--think") {
      options.think = value();
    } else if (flag == "--state") {
      options.state = value();
    } else if (flag == "--save-state") {
      options.save_state = value();
    } else if (flag == "--threads") {
      options.threads = int(whole_number(flag, value(), 1, 256));
    } else if (flag == "--stop") {
      options.stops.push_back(parse_stop(value()));
    } else if (flag == "--stats") {
      options.stats = true;
    } else if (flag == "--help") {
      options.help = true;
    } else if (flag == "--version") {
      options.version = true;
    } else if (flag == "--licenses") {
      options.licenses = true;
    } else {
      throw UserError("There is no " + flag + "; --help lists the flags.");
    }
    if (joined) throw UserError(flag + " takes no value.");
  }
  return options;
}
