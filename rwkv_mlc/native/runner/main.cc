// A model in a file: talks in the terminal, or goes on from a prompt.
#include <cstdio>
#include <exception>
#include <new>

#include "cpu.h"
#include "engine.h"
#include "error.h"
#include "options.h"
#include "pack.h"
#include "terminal.h"
#include "threads.h"
#include "utf8.h"

namespace {

constexpr int kUsage = 2, kFault = 70;

int run(int count, char** words) {
  const Options options = Options::parse(count, words);
  if (options.help) {
    std::fputs(kHelp, stdout);
    return 0;
  }
  const Pack pack = Pack::open();
  if (options.version || options.licenses) {
    std::puts(pack.index().at(options.version ? "version" : "licenses").text().c_str());
    return 0;
  }
  set_threads(options.threads ? options.threads : usable_cores());
  Engine engine(pack);
  if (options.system) engine.form.system_message = *options.system;
  SamplingParams params = options.prompt && !options.chat ? engine.defaults : engine.chat_params();
  for (const auto& [name, value] : options.settings) set(params, name, value);
  for (const std::string& stop : options.stops) params.stop.push_back(stop);
  params.check();
  return options.prompt ? run_prompt(engine, options, params) : run_chat(engine, options, params);
}

}  // namespace

int main(int count, char** words) {
  try {
    return run(count, words);
  } catch (const UserError& error) {
    std::fprintf(stderr, "%s\n", escaped(error.what()).c_str());
    return kUsage;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "There is not enough memory for this; free some.\n");
    return kUsage;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "This is a fault of the program, please report it: %s\n", error.what());
    return kFault;
  }
}
