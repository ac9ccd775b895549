// HTTP: OpenAI's chat completions and models, and the page at /.
#pragma once
#include "engine.h"
#include "options.h"

// Serves until the process is ended. Raises UserError for a port that is in use, and a token file without a token.
int run_server(Engine& engine, const Options& options, const SamplingParams& params);
