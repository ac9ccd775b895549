#include "server.h"

#include <httplib.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>

#include "completions.h"
#include "error.h"
#include "utf8.h"

namespace {

constexpr size_t kLargestRequest = 4 << 20;
constexpr const char* kLoopback = "127.0.0.1";
constexpr const char* kPolicy =
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'";

constexpr char kPage[] = {
#embed "../web/index.html"
};
constexpr char kScript[] = {
#embed "../web/chat.js"
};
constexpr char kStyle[] = {
#embed "../web/chat.css"
};

std::string token_in(const std::string& path) {
  std::ifstream file(path);
  std::string token;
  if (!file) throw UserError("The token file " + path + " cannot be read.");
  std::getline(file, token);
  token = std::string(strip_left(strip_right(token)));
  if (token.size() < 8) throw UserError("The first line of " + path + " should be a token of at least 8 characters.");
  return token;
}

// In a time that does not tell how much of it is right.
bool same(const std::string& given, const std::string& secret) {
  unsigned char differences = given.size() != secret.size();
  for (size_t i = 0; i < given.size(); ++i) differences |= given[i] ^ secret[i % secret.size()];
  return !differences;
}

std::string error_json(const std::string& sentence, const char* type) {
  return "{\"error\":{\"message\":" + json_string(sentence) + ",\"type\":\"" + type + "\",\"param\":null,\"code\":null}}";
}

void refuse(httplib::Response& response, int status, const std::string& sentence) {
  response.status = status;
  response.set_content(error_json(sentence, "invalid_request_error"), "application/json");
}

std::string usage_json(const Completion& done) {
  return "{\"prompt_tokens\":" + std::to_string(done.prompt_tokens) + ",\"completion_tokens\":" + std::to_string(done.tokens) +
         ",\"total_tokens\":" + std::to_string(done.prompt_tokens + done.tokens) + "}";
}

class Server {
 public:
  Server(Engine& engine, const SamplingParams& params, std::string token, std::string host, int port)
      : engine_(engine), params_(params), completions_(engine), token_(std::move(token)), host_(std::move(host)), port_(port) {
    http_.set_socket_options([](socket_t socket) {  // the library's own choice lets several programs have one port
      const int yes = 1;
      setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    });
    http_.set_payload_max_length(kLargestRequest);
    http_.set_read_timeout(30);
    http_.set_write_timeout(30);
    http_.set_keep_alive_timeout(5);
    http_.new_task_queue = [] { return new httplib::ThreadPool(16); };
    http_.set_default_headers({{"X-Content-Type-Options", "nosniff"}, {"Cache-Control", "no-store"}});
    http_.set_pre_routing_handler([this](const auto& request, auto& response) { return admit(request, response); });
    http_.set_exception_handler([](const auto&, auto& response, std::exception_ptr error) {
      try {
        std::rethrow_exception(error);
      } catch (const UserError& sentence) {
        refuse(response, 400, sentence.what());
      } catch (const std::exception& fault) {
        std::fprintf(stderr, "This is a fault of the program, please report it: %s\n", fault.what());
        response.status = 500;
        response.set_content(error_json("The server has failed; its output says how.", "server_error"), "application/json");
      }
    });
    http_.set_error_handler([](const auto&, auto& response) {
      if (response.body.empty()) refuse(response, response.status, "There is nothing like this here.");
    });
    file("/", {kPage, sizeof kPage}, "text/html; charset=utf-8");
    file("/chat.js", {kScript, sizeof kScript}, "text/javascript; charset=utf-8");
    file("/chat.css", {kStyle, sizeof kStyle}, "text/css; charset=utf-8");
    http_.Get("/health", [](const auto&, auto& response) { response.set_content("{\"status\":\"ok\"}", "application/json"); });
    http_.Get("/v1/models", [this](const auto&, auto& response) {
      response.set_content("{\"object\":\"list\",\"data\":[{\"id\":" + json_string(engine_.name) +
                               ",\"object\":\"model\",\"created\":0,\"owned_by\":\"rwkv_mlc\"}]}",
                           "application/json");
    });
    http_.Post("/v1/chat/completions", [this](const auto& request, auto& response) { complete(request, response); });
  }

  int run() {
    if (!http_.bind_to_port(host_.c_str(), port_)) {
      throw UserError("Port " + std::to_string(port_) + " of " + host_ + " is in use, or not this machine's; name another.");
    }
    std::fprintf(stderr, "%s answers at http://%s:%d/v1; the page to chat is http://%s:%d/\n", engine_.name.c_str(),
                 host_.c_str(), port_, host_.c_str(), port_);
    return http_.listen_after_bind() ? 0 : 1;
  }

  void stop() { http_.stop(); }

 private:
  using Handled = httplib::Server::HandlerResponse;

  // Only this server's own page and programs get in: a page of another site in the user's browser sends its own origin, or
  // has brought a name of its own to lead here.
  Handled admit(const httplib::Request& request, httplib::Response& response) {
    const std::string host = request.get_header_value("Host"), origin = request.get_header_value("Origin");
    const std::string port = ":" + std::to_string(port_);
    const bool own = host == host_ + port || (host_ == kLoopback && host == "localhost" + port);
    if (token_.empty() && !own) {
      refuse(response, 403, "This server answers to http://" + host_ + port + " alone.");
      return Handled::Handled;
    }
    if (!origin.empty() && origin != "http://" + host) {
      refuse(response, 403, "Pages of other sites are not served.");
      return Handled::Handled;
    }
    if (!token_.empty() && request.path.starts_with("/v1/") &&
        !same(request.get_header_value("Authorization"), "Bearer " + token_)) {
      refuse(response, 401, "The request lacks this server's token.");
      return Handled::Handled;
    }
    return Handled::Unhandled;
  }

  void file(const char* path, std::string_view content, const char* type) {
    http_.Get(path, [=](const auto&, auto& response) {
      response.set_header("Content-Security-Policy", kPolicy);
      response.set_content(content.data(), content.size(), type);
    });
  }

  void complete(const httplib::Request& request, httplib::Response& response) {
    const CompletionRequest wanted = CompletionRequest::parse(request.body, engine_, params_);
    const std::string head = ",\"created\":" + std::to_string(std::time(nullptr)) + ",\"model\":" + json_string(engine_.name);
    const std::string id = "\"chatcmpl-" + std::to_string(++answers_) + "\"";
    if (wanted.stream) return stream(wanted, "{\"id\":" + id + ",\"object\":\"chat.completion.chunk\"" + head, response);
    const Completion done = completions_.answer(wanted, [](const Piece&) { return true; });
    const std::string reasoning = done.reasoning.empty() ? "" : ",\"reasoning_content\":" + json_string(done.reasoning);
    response.set_content("{\"id\":" + id + ",\"object\":\"chat.completion\"" + head +
                             ",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":" +
                             json_string(done.text) + reasoning + "},\"logprobs\":null,\"finish_reason\":\"" +
                             done.finish_reason + "\"}],\"usage\":" + usage_json(done) + "}",
                         "application/json");
  }

  void stream(const CompletionRequest& wanted, const std::string& head, httplib::Response& response) {
    response.set_chunked_content_provider("text/event-stream", [this, wanted, head](size_t, httplib::DataSink& sink) {
      const auto send = [&](const std::string& json) {
        const std::string event = "data: " + json + "\n\n";
        return sink.is_writable() && sink.write(event.data(), event.size());
      };
      const auto choice = [&](const std::string& delta, const std::string& reason) {
        return send(head + ",\"choices\":[{\"index\":0,\"delta\":{" + delta + "},\"logprobs\":null,\"finish_reason\":" + reason +
                    "}]}");
      };
      try {
        choice("\"role\":\"assistant\",\"content\":\"\"", "null");
        const Completion done = completions_.answer(wanted, [&](const Piece& piece) {
          return choice((piece.thought ? "\"reasoning_content\":" : "\"content\":") + json_string(piece.text), "null");
        });
        choice("", "\"" + done.finish_reason + "\"");
        if (wanted.usage) send(head + ",\"choices\":[],\"usage\":" + usage_json(done) + "}");
      } catch (const UserError& error) {
        send(error_json(error.what(), "invalid_request_error"));
      }
      constexpr std::string_view kDone = "data: [DONE]\n\n";
      sink.write(kDone.data(), kDone.size());
      sink.done();
      return true;
    });
  }

  Engine& engine_;
  const SamplingParams& params_;
  Completions completions_;
  std::string token_, host_;
  int port_;
  std::atomic<int64_t> answers_{0};
  httplib::Server http_;
};

}  // namespace

int run_server(Engine& engine, const Options& options, const SamplingParams& params) {
  signal(SIGPIPE, SIG_IGN);
  Server server(engine, params, options.token_file ? token_in(*options.token_file) : "",
                options.listen.value_or(kLoopback), *options.port);
  return server.run();
}
