// Two processes, one connection or a thousand, both ends write numbered records of random size with a checksum at full speed and
// read the other's: nothing may be lost, doubled or reordered.
//# Args: tcp4; tcp6; mapped; unix; seqpacket; dgram; pair; pairdgram; udp; tcp4 1000; unix 1000; small; nodelay
//# Scenario: go-on, restart
//# Checkpoints: 4
//# Where: host
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// head: length (of all), check, number; then bytes that follow from the number.
struct head {
  uint32_t length, check;
  uint64_t number;
};
enum { LARGEST = 24 << 10, MESSAGE = 12 << 10 };

struct end {
  int fd;
  int stopped, done;
  uint64_t sent, received;
  size_t out_at, out_len, in_len;
  char out[LARGEST], in[2 * LARGEST];
};

static const char *kind;
static int messages, lossy;

#define FAIL(...) (fprintf(stderr, __VA_ARGS__), fprintf(stderr, " (%s, errno %d)\n", kind, errno), exit(1))

static uint32_t mix(uint64_t x) {
  x ^= x >> 31, x *= 0x7fb5d329728ea185, x ^= x >> 27, x *= 0x81dadef4bc2dd44d, x ^= x >> 33;
  return x;
}

static uint32_t sum(const char *p, size_t n) {
  uint32_t h = 2166136261u;
  for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)p[i]) * 16777619u;
  return h;
}

static void make(struct end *e, int last) {
  struct head h = {.number = last ? UINT64_MAX : e->sent++};
  h.length = last ? sizeof h : sizeof h + mix(h.number) % ((mix(h.number + 7) % 8 ? 512 : messages ? MESSAGE : LARGEST) - sizeof h);
  memset(e->out + sizeof h, (int)mix(h.number + 1), h.length - sizeof h);
  for (size_t i = sizeof h; i < h.length; i += 61) e->out[i] = (char)mix(h.number + i);
  h.check = sum(e->out + sizeof h, h.length - sizeof h) ^ (uint32_t)h.number;
  memcpy(e->out, &h, sizeof h);
  e->out_at = 0, e->out_len = h.length;
}

// Can more be written at once?
static int write_some(struct end *e, int stop) {
  if (e->stopped) return 0;
  if (e->out_at == e->out_len) make(e, stop);
  ssize_t n = send(e->fd, e->out + e->out_at, e->out_len - e->out_at, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (n < 0) {
    if (errno == EAGAIN || errno == EINTR || errno == ENOBUFS) return 0;
    FAIL("send of record %llu", (unsigned long long)e->sent);
  }
  e->out_at += n;
  if (messages && e->out_at != e->out_len) FAIL("a message was cut");
  struct head h;
  memcpy(&h, e->out, sizeof h);
  e->stopped = e->out_at == e->out_len && h.number == UINT64_MAX;
  return 1;
}

static int read_some(struct end *e) {
  ssize_t n = recv(e->fd, e->in + e->in_len, sizeof e->in - e->in_len, MSG_DONTWAIT);
  if (n < 0) {
    if (errno == EAGAIN || errno == EINTR) return 0;
    FAIL("recv after record %llu", (unsigned long long)e->received);
  }
  if (n == 0) FAIL("the end came after record %llu", (unsigned long long)e->received);
  e->in_len += n;
  size_t at = 0;
  struct head h;
  while (e->in_len - at >= sizeof h) {
    memcpy(&h, e->in + at, sizeof h);
    if (h.length < sizeof h || h.length > LARGEST) FAIL("a record of %u bytes", h.length);
    if (e->in_len - at < h.length) break;
    if (sum(e->in + at + sizeof h, h.length - sizeof h) != (h.check ^ (uint32_t)h.number)) FAIL("checksum");
    if (h.number == UINT64_MAX) {
      e->done = 1;
    } else {
      if (lossy ? h.number < e->received : h.number != e->received)
        FAIL("record %llu came, %llu was expected", (unsigned long long)h.number, (unsigned long long)e->received);
      e->received = h.number + 1;
    }
    at += h.length;
  }
  if (messages && at != e->in_len) FAIL("a message that is no record");
  memmove(e->in, e->in + at, e->in_len -= at);
  return 1;
}

static int64_t now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000ll + t.tv_nsec / 1000000;
}

// Writes and reads all ends until told to stop and the other side has stopped, too.
static void play(struct end **ends, int n, int beats) {
  int epoll = epoll_create1(EPOLL_CLOEXEC);
  for (int i = 0; i < n; i++) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.u32 = i};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, ends[i]->fd, &event) != 0) FAIL("epoll_ctl");
  }
  int stop = 0, left = n;
  uint64_t before = 0;
  int64_t last = now_ms(), deadline = 0;
  for (int beat = 0; left > 0;) {
    struct epoll_event events[64];
    int ready = epoll_wait(epoll, events, 64, 20);
    if (ready < 0 && errno != EINTR) FAIL("epoll_wait");
    for (int i = 0; i < ready; i++) {
      struct end *e = ends[events[i].data.u32];
      if (events[i].events & EPOLLIN)
        for (int k = 0; k < 8 && !e->done && read_some(e); k++) {}
      if (events[i].events & EPOLLOUT)
        for (int k = 0; k < 8 && write_some(e, stop); k++) {}
      if (e->done && e->stopped) {
        epoll_ctl(epoll, EPOLL_CTL_DEL, e->fd, NULL);
        left -= e->done != 2;
        e->done = 2;
      } else if (e->stopped && events[i].events & EPOLLOUT) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = events[i].data.u32};
        epoll_ctl(epoll, EPOLL_CTL_MOD, e->fd, &event);
      }
    }
    stop = stop || access(getenv("SW_STOP"), F_OK) == 0;
    if (stop && !deadline) deadline = now_ms() + 5000;
    if (lossy && stop && now_ms() > deadline) break;  // the last record may be what was lost
    if (beats && now_ms() - last >= 20) {
      uint64_t all = 0;
      for (int i = 0; i < n; i++) all += ends[i]->received;
      if (all != before) {  // a beat says that something arrived since the last
        printf("beat %d %llu\n", beat++, (unsigned long long)all);
        fflush(stdout);
      }
      before = all, last = now_ms();
    }
  }
}

static int is(const char *what) { return strcmp(kind, what) == 0; }

static void buffers(int fd) {
  int small = 4096, on = 1;
  if (is("small"))
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small) | setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small))
      FAIL("buffers");
  if (is("nodelay") && setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on)) FAIL("TCP_NODELAY");
}

static void listen_and_connect(int n, int *server, int *client, int family, int type) {
  struct sockaddr_storage name = {0}, peer = {0};
  socklen_t len = sizeof name;
  int listener = socket(family, type, 0);
  buffers(listener);
  struct sockaddr_in *in = (void *)&name;
  struct sockaddr_in6 *in6 = (void *)&name;
  struct sockaddr_un *un = (void *)&name;
  name.ss_family = family;
  if (family == AF_INET) in->sin_addr.s_addr = htonl(INADDR_LOOPBACK), len = sizeof *in;
  if (family == AF_INET6) in6->sin6_addr = is("mapped") ? in6addr_any : in6addr_loopback, len = sizeof *in6;
  if (family == AF_UNIX) snprintf(un->sun_path + 1, 90, "slackwater-streams-%d", getpid()), len = sizeof *un;
  if (bind(listener, (void *)&name, len) || listen(listener, 128)) FAIL("listen");
  if (getsockname(listener, (void *)&peer, &len)) FAIL("getsockname");
  if (is("mapped")) {
    uint16_t port = ((struct sockaddr_in6 *)&peer)->sin6_port;
    memset(&peer, 0, sizeof peer);
    family = peer.ss_family = AF_INET, len = sizeof *in;
    ((struct sockaddr_in *)&peer)->sin_port = port;
    ((struct sockaddr_in *)&peer)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  }
  for (int i = 0; i < n; i++) {
    client[i] = socket(family, type, 0);
    buffers(client[i]);
    if (connect(client[i], (void *)&peer, len)) FAIL("connect");
    if ((server[i] = accept(listener, NULL, NULL)) < 0) FAIL("accept");
    buffers(server[i]);
  }
  close(listener);
}

static void datagrams(int *server, int *client, int family) {
  struct sockaddr_storage names[2];
  socklen_t len;
  int *fds[2] = {server, client};
  for (int i = 0; i < 2; i++) {
    memset(&names[i], 0, sizeof names[i]);
    *fds[i] = socket(family, SOCK_DGRAM, 0);
    names[i].ss_family = family;
    len = family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(sa_family_t);  // Unix: autobind
    if (family == AF_INET) ((struct sockaddr_in *)&names[i])->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(*fds[i], (void *)&names[i], len)) FAIL("bind");
    len = sizeof names[i];
    getsockname(*fds[i], (void *)&names[i], &len);
  }
  if (connect(*server, (void *)&names[1], len) || connect(*client, (void *)&names[0], len)) FAIL("connect");
}

int main(int argc, char **argv) {
  kind = argc > 1 ? argv[1] : "tcp4";
  int n = argc > 2 ? atoi(argv[2]) : 1;
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  int server[n], client[n], two[2];
  messages = is("seqpacket") || is("dgram") || is("pairdgram") || is("udp");
  lossy = is("udp");
  if (is("pair") || is("pairdgram")) {
    if (socketpair(AF_UNIX, is("pair") ? SOCK_STREAM : SOCK_DGRAM, 0, two)) FAIL("socketpair");
    server[0] = two[0], client[0] = two[1];
  } else if (is("dgram") || is("udp")) {
    datagrams(server, client, is("udp") ? AF_INET : AF_UNIX);
  } else if (is("unix") || is("seqpacket")) {
    listen_and_connect(n, server, client, AF_UNIX, is("unix") ? SOCK_STREAM : SOCK_SEQPACKET);
  } else {
    listen_and_connect(n, server, client, is("tcp6") || is("mapped") ? AF_INET6 : AF_INET, SOCK_STREAM);
  }
  pid_t pid = fork();
  int *mine = pid ? server : client, *other = pid ? client : server;
  struct end **ends = malloc(n * sizeof *ends);
  for (int i = 0; i < n; i++) {
    close(other[i]);
    ends[i] = calloc(1, sizeof **ends);
    ends[i]->fd = mine[i];
  }
  if (pid) puts("ready");
  play(ends, n, pid != 0);
  if (!pid) _exit(0);
  int status;
  if (waitpid(pid, &status, 0) != pid || status != 0) FAIL("the other process ended with %d", status);
  puts("PASS");
  return 0;
}
