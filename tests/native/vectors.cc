// Holds the runner's own parts to tests/engine/generation_vectors.json, which comes on standard input with the templates' JSON
// under "conversations". Prints every case that differs, and how many were checked.
#include <cstdio>
#include <iostream>
#include <iterator>

#include "json.h"
#include "sampler.h"
#include "template.h"
#include "text_stream.h"
#include "thoughts.h"

namespace {

int checked = 0, wrong = 0;

void expect(const std::string& found, const std::string& expected, const std::string& what) {
  ++checked;
  if (found == expected) return;
  ++wrong;
  std::printf("%s: %s, expected %s\n", what.c_str(), json_string(found).c_str(), json_string(expected).c_str());
}

std::string from_hex(const std::string& digits) {
  std::string bytes;
  for (size_t i = 0; i < digits.size(); i += 2) bytes += char(std::stoi(digits.substr(i, 2), nullptr, 16));
  return bytes;
}

std::string shown(const std::vector<Piece>& pieces) {
  std::string text;
  for (const Piece& piece : pieces) text += (piece.thought ? "T" : "A") + json_string(piece.text);
  return text;
}

std::string shown(const Json& pieces) {
  std::string text;
  for (const Json& piece : pieces.list()) text += (piece.list()[0].truth() ? "T" : "A") + json_string(piece.list()[1].text());
  return text;
}

void check_random(const Json& test) {
  SamplingParams params;
  params.seed = std::stoull(test.at("seed").text());
  Sampler sampler(params, {});
  for (const Json& number : test.at("next").list()) {
    std::vector<Penalty> none;
    expect(std::to_string(sampler.request(none).drawn), std::to_string(std::stoull(number.text()) >> 32), "random");
  }
}

void check_stream(const Json& test) {
  std::vector<std::string> stops;
  for (const Json& stop : test.at("stop").list()) stops.push_back(stop.text());
  TextStream stream(stops);
  const std::vector<Json> chunks = test.at("chunks").list(), pushed = test.at("pushed").list();
  for (size_t i = 0; i < chunks.size(); ++i) expect(stream.push(from_hex(chunks[i].text())), pushed[i].text(), "stream");
  expect(stream.finish(), test.at("finished").text(), "the end of a stream");
  expect(stream.released(), from_hex(test.at("released").text()), "released");
  expect(stream.stopped() ? "stopped" : "", test.at("stopped").truth() ? "stopped" : "", "a stop string");
}

void check_thoughts(const Json& test) {
  const std::string opening = test.at("opening").text();
  ThoughtStream stream("<think>", "</think>", opening);
  const std::vector<Json> chunks = test.at("chunks").list(), pushed = test.at("pushed").list();
  for (size_t i = 0; i < chunks.size(); ++i) expect(shown(stream.push(chunks[i].text())), shown(pushed[i]), "thoughts");
  expect(shown(stream.finish()), shown(test.at("finished")), "the end of thoughts");
}

void check_template(const Json& test, const Json& conversation) {
  const Template form(conversation);
  const std::string name = test.at("name").text();
  expect(form.system_prompt(), test.at("system_prompt").text(), name);
  for (const Json& turn : test.at("user_turns").list()) {
    expect(form.user_turn(turn.at("text").text(), nullptr), turn.at("turn").text(), name);
  }
  for (const Json& end : test.at("after_answer").list()) {
    expect(form.after_answer(from_hex(end.at("answer").text())), from_hex(end.at("feed").text()), name);
  }
  if (test.has("think")) {
    for (const auto& [mode, turn] : test.at("think").members()) {
      expect(form.user_turn("Hello", form.think_mode(mode)), turn.text(), name + ", " + mode);
    }
  }
  if (test.has("told")) {
    for (const Json& end : test.at("told").list()) {
      expect(form.told(end.at("answer").text()), from_hex(end.at("feed").text()), name);
    }
  }
}

}  // namespace

int main() {
  const std::string text{std::istreambuf_iterator<char>(std::cin), {}};
  const Json vectors = Json::parse(text, "the vectors");
  for (const Json& test : vectors.at("random").list()) check_random(test);
  for (const Json& test : vectors.at("stream").list()) check_stream(test);
  for (const Json& test : vectors.at("thoughts").list()) check_thoughts(test);
  for (const Json& test : vectors.at("templates").list()) {
    check_template(test, vectors.at("conversations").at(test.at("name").text()));
  }
  std::printf("%d checked\n", checked);
  return wrong ? 1 : 0;
}
