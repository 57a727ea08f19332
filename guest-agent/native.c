/* What QuickJS lacks and the agent needs: SHA-256, UTF-8, durable writes, mounts, processes with a group of their own.
 * Functions return a negative errno where the caller may expect failure, and throw on arguments that cannot be meant.
 * Every buffer access is checked against the buffer's own size. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <unistd.h>
#include "quickjs.h"

#ifndef AGENT_MEMORY_BYTES_MAX
#error "AGENT_MEMORY_BYTES_MAX is given by the build"
#endif
#define WORDS_MAX 4096

/* ---- SHA-256 (FIPS 180-4) ---- */

typedef struct {
  uint32_t hash[8];
  uint32_t pending_size;
  uint64_t total_size;
  uint8_t pending[64];
} Sha;

static const uint32_t ROUND[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotate(uint32_t word, int bits) { return word >> bits | word << (32 - bits); }

static void sha_block(uint32_t hash[8], const uint8_t *block) {
  uint32_t w[64];
  for (int i = 0; i < 16; i++)
    w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
  for (int i = 16; i < 64; i++) {
    uint32_t x = w[i - 15], y = w[i - 2];
    w[i] = w[i - 16] + (rotate(x, 7) ^ rotate(x, 18) ^ x >> 3) + w[i - 7] + (rotate(y, 17) ^ rotate(y, 19) ^ y >> 10);
  }
  uint32_t a = hash[0], b = hash[1], c = hash[2], d = hash[3], e = hash[4], f = hash[5], g = hash[6], h = hash[7];
  for (int i = 0; i < 64; i++) {
    uint32_t one = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + ROUND[i] + w[i];
    uint32_t two = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + one, d = c, c = b, b = a, a = one + two;
  }
  hash[0] += a, hash[1] += b, hash[2] += c, hash[3] += d, hash[4] += e, hash[5] += f, hash[6] += g, hash[7] += h;
}

static void sha_add(Sha *sha, const uint8_t *bytes, size_t size) {
  sha->total_size += size;
  if (sha->pending_size > 0) {
    size_t part = 64 - sha->pending_size < size ? 64 - sha->pending_size : size;
    memcpy(sha->pending + sha->pending_size, bytes, part);
    sha->pending_size += part;
    bytes += part;
    size -= part;
    if (sha->pending_size < 64) return;
    sha_block(sha->hash, sha->pending);
    sha->pending_size = 0;
  }
  for (; size >= 64; bytes += 64, size -= 64) sha_block(sha->hash, bytes);
  memcpy(sha->pending, bytes, size);
  sha->pending_size = size;
}

/* The state lives in an ArrayBuffer of the script, so it is checked like anything else from there. */
static Sha *sha_of(JSContext *ctx, JSValueConst value) {
  size_t size;
  Sha *sha = (Sha *)JS_GetArrayBuffer(ctx, &size, value);
  if (sha == NULL) return NULL;
  if (size == sizeof(Sha) && sha->pending_size < 64) return sha;
  JS_ThrowTypeError(ctx, "not a SHA-256 state");
  return NULL;
}

static JSValue sha256_start(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  Sha sha = {.hash = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}};
  return JS_NewArrayBufferCopy(ctx, (const uint8_t *)&sha, sizeof(sha));
}

static uint8_t *slice_of(JSContext *ctx, JSValueConst *argv, size_t *length) {
  size_t size;
  uint64_t offset, wanted;
  uint8_t *bytes = JS_GetArrayBuffer(ctx, &size, argv[0]);
  if (bytes == NULL || JS_ToIndex(ctx, &offset, argv[1]) || JS_ToIndex(ctx, &wanted, argv[2])) return NULL;
  if (offset > size || wanted > size - offset) {
    JS_ThrowRangeError(ctx, "outside of the buffer");
    return NULL;
  }
  *length = wanted;
  return bytes + offset;
}

/* sha256Add(state, buffer, offset, length) */
static JSValue sha256_add(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  size_t length;
  uint8_t *bytes = slice_of(ctx, argv + 1, &length);
  if (bytes == NULL) return JS_EXCEPTION;
  Sha *sha = sha_of(ctx, argv[0]);
  if (sha == NULL) return JS_EXCEPTION;
  sha_add(sha, bytes, length);
  return JS_UNDEFINED;
}

/* sha256AddFile(state, fd, sizeMax): bytes read, 0 at the end, or -errno */
static JSValue sha256_add_file(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  static uint8_t piece[65536];
  int fd;
  int64_t size_max, done = 0;
  Sha *sha = sha_of(ctx, argv[0]);
  if (sha == NULL || JS_ToInt32(ctx, &fd, argv[1]) || JS_ToInt64(ctx, &size_max, argv[2])) return JS_EXCEPTION;
  while (done < size_max) {
    size_t wanted = size_max - done < (int64_t)sizeof(piece) ? (size_t)(size_max - done) : sizeof(piece);
    ssize_t count = read(fd, piece, wanted);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return JS_NewInt32(ctx, -errno);
    if (count == 0) break;
    sha_add(sha, piece, count);
    done += count;
  }
  return JS_NewInt64(ctx, done);
}

static JSValue sha256_end(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  static const char digits[] = "0123456789abcdef";
  static const uint8_t padding[64] = {0x80};
  uint8_t length[8];
  char text[64];
  Sha *sha = sha_of(ctx, argv[0]);
  if (sha == NULL) return JS_EXCEPTION;
  uint64_t bits = sha->total_size * 8;
  for (int i = 0; i < 8; i++) length[i] = bits >> (56 - 8 * i);
  sha_add(sha, padding, sha->pending_size < 56 ? 56 - sha->pending_size : 120 - sha->pending_size);
  sha_add(sha, length, 8);
  for (int i = 0; i < 64; i++) text[i] = digits[sha->hash[i / 8] >> (28 - 4 * (i % 8)) & 15];
  return JS_NewStringLen(ctx, text, 64);
}

/* ---- Text ---- */

static JSValue utf8_encode(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  size_t size;
  const char *text = JS_ToCStringLen(ctx, &size, argv[0]);
  if (text == NULL) return JS_EXCEPTION;
  JSValue bytes = JS_NewArrayBufferCopy(ctx, (const uint8_t *)text, size);
  JS_FreeCString(ctx, text);
  return bytes;
}

/* utf8Decode(buffer, offset, length): invalid sequences become U+FFFD */
static JSValue utf8_decode(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  size_t length;
  uint8_t *bytes = slice_of(ctx, argv, &length);
  if (bytes == NULL) return JS_EXCEPTION;
  return JS_NewStringLen(ctx, (const char *)bytes, length);
}

/* ---- Files ---- */

static JSValue result_of(JSContext *ctx, int result) { return JS_NewInt32(ctx, result < 0 ? -errno : result); }

static JSValue file_sync(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  int fd;
  if (JS_ToInt32(ctx, &fd, argv[0])) return JS_EXCEPTION;
  return result_of(ctx, fsync(fd));
}

/* Writes back everything on the file system of an open file: one call for a tree of any size. */
static JSValue file_system_sync(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  int fd;
  if (JS_ToInt32(ctx, &fd, argv[0])) return JS_EXCEPTION;
  return result_of(ctx, syncfs(fd));
}

static JSValue sync_all(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  sync();
  return JS_UNDEFINED;
}

static JSValue file_mode(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  int fd, mode;
  if (JS_ToInt32(ctx, &fd, argv[0]) || JS_ToInt32(ctx, &mode, argv[1])) return JS_EXCEPTION;
  return result_of(ctx, fchmod(fd, mode & 07777));
}

/* fileOwner(fd, uid, gid) */
static JSValue file_owner(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  int fd;
  uint32_t uid, gid;
  if (JS_ToInt32(ctx, &fd, argv[0]) || JS_ToUint32(ctx, &uid, argv[1]) || JS_ToUint32(ctx, &gid, argv[2])) return JS_EXCEPTION;
  return result_of(ctx, fchown(fd, uid, gid));
}

/* openFolder(path): never by a symbolic link at its end */
static JSValue open_folder(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  const char *path = JS_ToCString(ctx, argv[0]);
  if (path == NULL) return JS_EXCEPTION;
  int result = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  JSValue value = result_of(ctx, result);
  JS_FreeCString(ctx, path);
  return value;
}

/* openPlain(path): for reading; a plain file only, never by a symbolic link at its end, and without waiting for a pipe's writer */
static JSValue open_plain(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  const char *path = JS_ToCString(ctx, argv[0]);
  if (path == NULL) return JS_EXCEPTION;
  int result = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  struct stat found;
  if (result >= 0 && (fstat(result, &found) < 0 || !S_ISREG(found.st_mode))) {
    close(result);
    result = -1;
    errno = EINVAL;
  }
  JSValue value = result_of(ctx, result);
  JS_FreeCString(ctx, path);
  return value;
}

static JSValue hard_link(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  const char *from = JS_ToCString(ctx, argv[0]);
  const char *to = from == NULL ? NULL : JS_ToCString(ctx, argv[1]);
  int result = to == NULL ? 0 : link(from, to) < 0 ? -errno : 0;
  JSValue value = to == NULL ? JS_EXCEPTION : JS_NewInt32(ctx, result);
  JS_FreeCString(ctx, from);
  JS_FreeCString(ctx, to);
  return value;
}

/* Bytes free to everybody, or -errno. */
static JSValue free_bytes(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  struct statvfs fs;
  const char *path = JS_ToCString(ctx, argv[0]);
  if (path == NULL) return JS_EXCEPTION;
  int result = statvfs(path, &fs) < 0 ? -errno : 0;
  JS_FreeCString(ctx, path);
  return JS_NewInt64(ctx, result < 0 ? result : (int64_t)fs.f_bavail * (int64_t)fs.f_frsize);
}

/* ---- The system ---- */

/* mountReadOnly(device, folder, type): no devices, no set-uid, nothing executable */
static JSValue mount_read_only(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  const char *device = JS_ToCString(ctx, argv[0]);
  const char *folder = device == NULL ? NULL : JS_ToCString(ctx, argv[1]);
  const char *type = folder == NULL ? NULL : JS_ToCString(ctx, argv[2]);
  JSValue value = JS_EXCEPTION;
  if (type != NULL) value = result_of(ctx, mount(device, folder, type, MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
  JS_FreeCString(ctx, device);
  JS_FreeCString(ctx, folder);
  JS_FreeCString(ctx, type);
  return value;
}

static JSValue unmount(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  int is_lazy = JS_ToBool(ctx, argv[1]);
  const char *folder = is_lazy < 0 ? NULL : JS_ToCString(ctx, argv[0]);
  if (folder == NULL) return JS_EXCEPTION;
  JSValue value = result_of(ctx, umount2(folder, (is_lazy ? MNT_DETACH : 0) | UMOUNT_NOFOLLOW));
  JS_FreeCString(ctx, folder);
  return value;
}

static JSValue restart_machine(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  sync();
  return result_of(ctx, reboot(RB_AUTOBOOT));
}

static JSValue kernel_name(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  struct utsname name;
  if (uname(&name) < 0) return JS_ThrowInternalError(ctx, "uname failed");
  JSValue list = JS_NewArray(ctx);
  JS_SetPropertyUint32(ctx, list, 0, JS_NewString(ctx, name.release));
  JS_SetPropertyUint32(ctx, list, 1, JS_NewString(ctx, name.machine));
  return list;
}

/* Whether a socket of either family speaks from this port; both have it at the same place. */
static int is_own_port(int fd, int port) {
  struct sockaddr_in6 own = {0};
  socklen_t size = sizeof(own);
  return getsockname(fd, (struct sockaddr *)&own, &size) == 0 && ntohs(own.sin6_port) == port;
}

/* connectLoopback(port, isV6, waitMs): 0 if something accepts a connection to this port of our own loopback, else -errno. Waits
 * only if the other side's queue is full. */
static JSValue connect_loopback(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  int port, wait_ms, error = 0;
  socklen_t size = sizeof(error);
  int is_v6 = JS_ToBool(ctx, argv[1]);
  if (is_v6 < 0 || JS_ToInt32(ctx, &port, argv[0]) || JS_ToInt32(ctx, &wait_ms, argv[2])) return JS_EXCEPTION;
  struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
  int fd = socket(is_v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return JS_NewInt32(ctx, -errno);
  if (connect(fd, is_v6 ? (struct sockaddr *)&v6 : (struct sockaddr *)&v4, is_v6 ? sizeof(v6) : sizeof(v4)) < 0) error = errno;
  if (error == EINPROGRESS) {
    struct pollfd one = {.fd = fd, .events = POLLOUT};
    if (poll(&one, 1, wait_ms) != 1) error = ETIMEDOUT;
    else if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0) error = errno;
  }
  /* A port that nobody listens on answers itself where the kernel happens to give us the same one to speak from (RFC 9293, 3.5).
   * Reset rather than closed: it would be taken for a minute. */
  if (error == 0 && is_own_port(fd, port)) {
    struct linger reset = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    error = ECONNREFUSED;
  }
  close(fd);
  return JS_NewInt32(ctx, -error);
}

/* Opens a character device, pipe or terminal for both ways, or connects to a unix socket; never blocks later. fd or -errno. */
static JSValue open_port(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  struct stat st;
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  const char *path = JS_ToCString(ctx, argv[0]);
  if (path == NULL) return JS_EXCEPTION;
  int fd = -1, error = 0;
  if (stat(path, &st) < 0) error = errno;
  else if (!S_ISSOCK(st.st_mode)) {
    fd = open(path, O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    error = errno;
  } else if (strlen(path) >= sizeof(address.sun_path)) error = ENAMETOOLONG;
  else {
    strcpy(address.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    error = errno;
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
      error = errno;
      close(fd);
      fd = -1;
    }
  }
  JS_FreeCString(ctx, path);
  return JS_NewInt32(ctx, fd < 0 ? -error : fd);
}

/* ---- Processes ---- */

static void free_words(JSContext *ctx, char **words) {
  for (char **word = words; words != NULL && *word != NULL; word++) free(*word);
  free(words);
}

/* A NULL-terminated copy of an array of strings; NULL with an exception pending otherwise. */
static char **words_of(JSContext *ctx, JSValueConst list) {
  int64_t count;
  JSValue length = JS_GetPropertyStr(ctx, list, "length");
  int failed = JS_ToInt64(ctx, &count, length);
  JS_FreeValue(ctx, length);
  if (failed) return NULL;
  if (count < 0 || count > WORDS_MAX) {
    JS_ThrowRangeError(ctx, "too many words");
    return NULL;
  }
  char **words = calloc(count + 1, sizeof(*words));
  for (int64_t i = 0; words != NULL && i < count; i++) {
    JSValue item = JS_GetPropertyUint32(ctx, list, i);
    const char *text = JS_ToCString(ctx, item);
    words[i] = text == NULL ? NULL : strdup(text);
    JS_FreeCString(ctx, text);
    JS_FreeValue(ctx, item);
    if (words[i] == NULL) {
      free_words(ctx, words);
      if (text != NULL) JS_ThrowOutOfMemory(ctx);
      return NULL;
    }
  }
  if (words == NULL) JS_ThrowOutOfMemory(ctx);
  return words;
}

/* The signals the agent hears arrive on a descriptor, so that none is lost between two looks. fd or -errno. */
static JSValue open_signals(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  sigset_t heard;
  sigemptyset(&heard);
  sigaddset(&heard, SIGTERM);
  sigaddset(&heard, SIGINT);
  sigaddset(&heard, SIGCHLD);
  if (sigprocmask(SIG_BLOCK, &heard, NULL) < 0) return result_of(ctx, -1);
  return result_of(ctx, signalfd(-1, &heard, SFD_NONBLOCK | SFD_CLOEXEC));
}

/* readSignal(fd): a signal's number, or -errno when none waits */
static JSValue read_signal(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  struct signalfd_siginfo signal;
  int fd;
  if (JS_ToInt32(ctx, &fd, argv[0])) return JS_EXCEPTION;
  ssize_t size = read(fd, &signal, sizeof(signal));
  if (size < 0) return JS_NewInt32(ctx, -errno);
  return JS_NewInt32(ctx, size == sizeof(signal) ? (int)signal.ssi_signo : -EIO);
}

/* In the child: only what is safe between fork and execve. */
static void run_child(char **argv, char **env, const char *cwd, int out, int err, int64_t file_bytes_max, pid_t parent) {
  sigset_t no_signals;
  sigemptyset(&no_signals);
  struct rlimit limit = {.rlim_cur = file_bytes_max, .rlim_max = file_bytes_max};
  setsid();
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);
  signal(SIGPIPE, SIG_DFL);
  sigprocmask(SIG_SETMASK, &no_signals, NULL);
  if (file_bytes_max > 0) setrlimit(RLIMIT_FSIZE, &limit);
  if (dup2(out, 1) < 0 || dup2(err, 2) < 0) _exit(127);
  int null = open("/dev/null", O_RDONLY);
  if (null < 0 || dup2(null, 0) < 0) _exit(127);
  for (int fd = 3; fd < 1024; fd++) close(fd);
  if (*cwd != '\0' && chdir(cwd) < 0) _exit(127);
  execve(argv[0], argv, env);
  _exit(127);
}

/* spawn(argv, env, cwd or '', outFd, errFd, fileBytesMax or 0): a process in a session and group of its own, its input
 * empty. pid or -errno. */
static JSValue spawn(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  int out, err;
  int64_t file_bytes_max;
  if (JS_ToInt32(ctx, &out, argv[3]) || JS_ToInt32(ctx, &err, argv[4]) || JS_ToInt64(ctx, &file_bytes_max, argv[5])) return JS_EXCEPTION;
  char **words = words_of(ctx, argv[0]);
  char **env = words == NULL ? NULL : words_of(ctx, argv[1]);
  const char *cwd = env == NULL ? NULL : JS_ToCString(ctx, argv[2]);
  JSValue value = JS_EXCEPTION;
  if (cwd != NULL && words[0] == NULL) value = JS_ThrowTypeError(ctx, "a process needs a program");
  else if (cwd != NULL) {
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid == 0) run_child(words, env, cwd, out, err, file_bytes_max, parent);
    value = result_of(ctx, pid);
  }
  JS_FreeCString(ctx, cwd);
  free_words(ctx, words);
  free_words(ctx, env);
  return value;
}

/* Kills a whole process group. The caller has not yet waited for its leader, so the number cannot be another group's. */
static JSValue kill_group(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  int pid;
  if (JS_ToInt32(ctx, &pid, argv[0])) return JS_EXCEPTION;
  if (pid <= 1) return JS_ThrowRangeError(ctx, "not a process group of ours");
  return result_of(ctx, kill(-pid, SIGKILL));
}

/* replaceSelf(path, argv, env): returns only on failure, with -errno */
static JSValue replace_self(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  char **words = words_of(ctx, argv[1]);
  char **env = words == NULL ? NULL : words_of(ctx, argv[2]);
  const char *path = env == NULL ? NULL : JS_ToCString(ctx, argv[0]);
  JSValue value = JS_EXCEPTION;
  if (path != NULL) {
    sigset_t before, none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, &before);
    for (int fd = 3; fd < 1024; fd++) fcntl(fd, F_SETFD, FD_CLOEXEC);
    execve(path, words, env);
    value = JS_NewInt32(ctx, -errno);
    sigprocmask(SIG_SETMASK, &before, NULL);
  }
  JS_FreeCString(ctx, path);
  free_words(ctx, words);
  free_words(ctx, env);
  return value;
}

static const JSCFunctionListEntry functions[] = {
    JS_CFUNC_DEF("sha256Start", 0, sha256_start),
    JS_CFUNC_DEF("sha256Add", 4, sha256_add),
    JS_CFUNC_DEF("sha256AddFile", 3, sha256_add_file),
    JS_CFUNC_DEF("sha256End", 1, sha256_end),
    JS_CFUNC_DEF("utf8Encode", 1, utf8_encode),
    JS_CFUNC_DEF("utf8Decode", 3, utf8_decode),
    JS_CFUNC_DEF("fileSync", 1, file_sync),
    JS_CFUNC_DEF("fileSystemSync", 1, file_system_sync),
    JS_CFUNC_DEF("syncAll", 0, sync_all),
    JS_CFUNC_DEF("fileMode", 2, file_mode),
    JS_CFUNC_DEF("fileOwner", 3, file_owner),
    JS_CFUNC_DEF("openFolder", 1, open_folder),
    JS_CFUNC_DEF("openPlain", 1, open_plain),
    JS_CFUNC_DEF("hardLink", 2, hard_link),
    JS_CFUNC_DEF("freeBytes", 1, free_bytes),
    JS_CFUNC_DEF("mountReadOnly", 3, mount_read_only),
    JS_CFUNC_DEF("unmount", 2, unmount),
    JS_CFUNC_DEF("restartMachine", 0, restart_machine),
    JS_CFUNC_DEF("kernelName", 0, kernel_name),
    JS_CFUNC_DEF("openPort", 1, open_port),
    JS_CFUNC_DEF("connectLoopback", 3, connect_loopback),
    JS_CFUNC_DEF("openSignals", 0, open_signals),
    JS_CFUNC_DEF("readSignal", 1, read_signal),
    JS_CFUNC_DEF("spawn", 6, spawn),
    JS_CFUNC_DEF("killGroup", 1, kill_group),
    JS_CFUNC_DEF("replaceSelf", 3, replace_self),
};
#define FUNCTIONS_COUNT (sizeof(functions) / sizeof(*functions))

static int init(JSContext *ctx, JSModuleDef *module) { return JS_SetModuleExportList(ctx, module, functions, FUNCTIONS_COUNT); }

JSModuleDef *js_init_module_native(JSContext *ctx, const char *name) {
  JSModuleDef *module = JS_NewCModule(ctx, name, init);
  if (module == NULL) return NULL;
  JS_AddModuleExportList(ctx, module, functions, FUNCTIONS_COUNT);
  /* Once, before the script runs: a host that hangs up is no reason to die, and no input may eat the guest's memory. */
  signal(SIGPIPE, SIG_IGN);
  umask(022);
  JS_SetMemoryLimit(JS_GetRuntime(ctx), AGENT_MEMORY_BYTES_MAX);
  JS_SetGCThreshold(JS_GetRuntime(ctx), 256 * 1024);
  return module;
}
