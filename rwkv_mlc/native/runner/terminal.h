// A conversation in a terminal, or line by line from a pipe; and the text that goes on from one prompt.
#pragma once
#include "engine.h"
#include "options.h"

int run_chat(Engine& engine, const Options& options, SamplingParams params);
int run_prompt(Engine& engine, const Options& options, SamplingParams params);
