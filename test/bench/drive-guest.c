// Reads block devices inside the bench's guest, past the guest's page cache, on the host's word. One static program, started by drive-guest-init.
//
// A line `read DEVICE BLOCK DEPTH COUNT SEED` on the serial port (seed 0: one block after the other) is answered with
// `done NANOSECONDS CHECKSUM`, or `failed WORDS`. Linux AIO (io_submit(2)) keeps DEPTH requests under way.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { DEPTH_MAX = 64, BLOCK_MAX = 4 << 20, PREAD = 0 };

// As linux/aio_abi.h has them on little-endian machines; musl's compiler does not see the kernel's headers.
struct iocb {
  uint64_t data;
  uint32_t key, flags;
  uint16_t opcode;
  int16_t priority;
  uint32_t fd;
  uint64_t buffer, bytes;
  int64_t offset;
  uint64_t reserved;
  uint32_t options, event_fd;
};
struct io_event {
  uint64_t data, object;
  int64_t result, result2;
};

static const unsigned long BLKGETSIZE64_REQUEST = 0x80081272;

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t next_random(uint64_t *state) {
  uint64_t x = *state;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return *state = x;
}

// Returns what failed, or NULL.
static const char *read_all(int fd, long block, int depth, long count, uint64_t seed, uint64_t *checksum) {
  static struct iocb requests[DEPTH_MAX];
  uint64_t size_bytes = 0;
  if (ioctl(fd, BLKGETSIZE64_REQUEST, &size_bytes) != 0) return "size";
  uint64_t blocks = size_bytes / (uint64_t)block;
  if (blocks == 0) return "size";
  char *buffers = NULL;
  if (posix_memalign((void **)&buffers, 4096, (size_t)block * (size_t)depth) != 0) return "memory";
  unsigned long context = 0;
  const char *failure = syscall(SYS_io_setup, depth, &context) == 0 ? NULL : "io_setup";
  long sent = 0, done = 0;
  uint64_t state = seed, sum = 0;
  while (failure == NULL && done < count) {
    struct io_event events[DEPTH_MAX];
    long got = 0;
    if (sent >= depth || sent >= count) {
      got = syscall(SYS_io_getevents, context, 1, depth, events, NULL);
      if (got < 1) { failure = "io_getevents"; break; }
    }
    // The first requests fill the queue; each that came back makes room for the next.
    long room = got > 0 ? got : 1;
    for (long i = 0; i < room && failure == NULL; i += 1) {
      long slot = got > 0 ? (long)events[i].data : sent;
      char *buffer = buffers + slot * block;
      if (got > 0) {
        if (events[i].result != block) { failure = "read"; break; }
        uint64_t word;
        memcpy(&word, buffer, sizeof word);
        sum += word;
        done += 1;
      }
      if (sent >= count) continue;
      uint64_t index = seed == 0 ? (uint64_t)sent % blocks : next_random(&state) % blocks;
      requests[slot] = (struct iocb){.data = (uint64_t)slot, .opcode = PREAD, .fd = (uint32_t)fd,
        .buffer = (uint64_t)(uintptr_t)buffer, .bytes = (uint64_t)block, .offset = (int64_t)(index * (uint64_t)block)};
      struct iocb *one = &requests[slot];
      if (syscall(SYS_io_submit, context, 1, &one) != 1) failure = "io_submit";
      sent += 1;
    }
  }
  syscall(SYS_io_destroy, context);
  free(buffers);
  *checksum = sum;
  return failure;
}

static void answer(const char *device, long block, int depth, long count, unsigned long long seed) {
  char path[64];
  snprintf(path, sizeof path, "/dev/%s", device);
  int fd = open(path, O_RDONLY | O_DIRECT);
  if (fd < 0) {
    printf("failed open %s: %s\n", path, strerror(errno));
    return;
  }
  uint64_t checksum = 0, start = now_ns();
  const char *failure = read_all(fd, block, depth, count, seed, &checksum);
  uint64_t spent = now_ns() - start;
  close(fd);
  if (failure != NULL) printf("failed %s: %s\n", failure, strerror(errno));
  else printf("done %llu %llx\n", (unsigned long long)spent, (unsigned long long)checksum);
}

int main(void) {
  struct termios raw;
  if (tcgetattr(0, &raw) == 0) {
    cfmakeraw(&raw);
    tcsetattr(0, TCSANOW, &raw);
  }
  setvbuf(stdout, NULL, _IOLBF, 0);
  puts("ready");
  char line[256], device[32];
  while (fgets(line, sizeof line, stdin) != NULL) {
    long block, count;
    int depth;
    unsigned long long seed;
    int fields = sscanf(line, "read %31s %ld %d %ld %llu", device, &block, &depth, &count, &seed);
    int fits = fields == 5 && block >= 512 && block <= BLOCK_MAX && depth >= 1 && depth <= DEPTH_MAX && count >= 1;
    if (fits) answer(device, block, depth, count, seed);
    else puts("failed words");
  }
  return 0;
}
