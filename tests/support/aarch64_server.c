// Serves TVM's RPC protocol to one client and prints the port where it waits for it.
// Arguments: the libraries that make up TVM's runtime, each after those that it needs.
#include <dlfcn.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

typedef struct { const char *data; size_t size; } Bytes;              // TVMFFIByteArray
typedef struct { int32_t type, padding; int64_t integer; } Argument;  // TVMFFIAny

static void need(int fine, const char *what) {
  if (!fine) {
    fprintf(stderr, "%s failed\n", what);
    exit(1);
  }
}

static void receive(int client, void *data, size_t size) {
  need(recv(client, data, size, MSG_WAITALL) == (ssize_t)size, "receiving");
}

int main(int argc, char **argv) {
  for (int i = 1; i < argc; ++i) need(dlopen(argv[i], RTLD_NOW | RTLD_GLOBAL) != NULL, argv[i]);
  int (*find)(const Bytes *, void **) = dlsym(RTLD_DEFAULT, "TVMFFIFunctionGetGlobal");
  int (*call)(void *, Argument *, int32_t, Argument *) = dlsym(RTLD_DEFAULT, "TVMFFIFunctionCall");
  Bytes name = {"rpc.ServerLoop", 14};
  void *serve = NULL;
  need(find && call && !find(&name, &serve) && serve, "finding rpc.ServerLoop");

  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  need(!bind(listener, (struct sockaddr *)&address, size) && !listen(listener, 1), "listening");
  need(!getsockname(listener, (struct sockaddr *)&address, &size), "getsockname");
  printf("%d\n", ntohs(address.sin_port));
  fflush(stdout);

  int client = accept(listener, NULL, NULL);
  int32_t hello[2];  // a magic number, which is sent back, and the length of the client's key
  char key[256];
  receive(client, hello, sizeof hello);
  need(hello[1] >= 0 && hello[1] <= (int32_t)sizeof key, "handshake");
  receive(client, key, hello[1]);
  hello[1] = 7;
  need(send(client, hello, sizeof hello, 0) == sizeof hello && send(client, "server:", 7, 0) == 7, "answering");
  Argument socket_number = {1, 0, client}, nothing;
  need(!call(serve, &socket_number, 1, &nothing), "serving");
}
