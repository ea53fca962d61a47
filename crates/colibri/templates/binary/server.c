/* A server for HTTP/1.1 on $PORT: one connection at a time, closed after each answer. Build it with: make */
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char BODY[] = "hello world\n";

/* Reads a request's head; false where the client went away before it was complete. */
static int read_head(int connection) {
  char head[16384];
  size_t used = 0;
  while (used < sizeof head - 1) {
    ssize_t got = read(connection, head + used, sizeof head - 1 - used);
    if (got <= 0) return 0;
    used += (size_t)got;
    head[used] = 0;
    if (strstr(head, "\r\n\r\n")) return 1;
  }
  return 0;
}

int main(void) {
  const char *port = getenv("PORT");
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port ? port : "8080"))};
  int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
  signal(SIGPIPE, SIG_IGN);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 128)) {
    perror("server: cannot listen");
    return 1;
  }
  for (;;) {
    int connection = accept(listener, NULL, NULL);
    if (connection < 0) continue;
    if (read_head(connection))
      dprintf(connection, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s",
              sizeof BODY - 1, BODY);
    close(connection);
  }
}
