// What the root of a guest can send to a drive beside ordinary writes: ioctls, raw SCSI commands, and requests put into a virtio
// ring by a driver of its own, past every check of the guest's kernel. Prints one line for each attempt: name=answer.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <scsi/sg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

// linux/fs.h, which is not among this C library's headers.
#define BLKROSET _IO(0x12, 93)
#define BLKDISCARD _IO(0x12, 119)
#define BLKSECDISCARD _IO(0x12, 125)
#define BLKZEROOUT _IO(0x12, 127)

enum { SECTOR = 512, ISO_SECTOR = 2048, PAGE = 4096 };

static void tell(const char *name, int result) {
  printf("%s=%s\n", name, result < 0 ? strerror(errno) : "done");
}

static void *aligned(size_t size, int byte) {
  void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED) exit(3);
  memset(memory, byte, size);
  return memory;
}

// ---- Ordinary writes and ioctls -----------------------------------------------------------------------------------

static void write_it(const char *device) {
  int off = 0;
  int reader = open(device, O_RDONLY);
  tell("BLKROSET", ioctl(reader, BLKROSET, &off));
  int file = open(device, O_RDWR | O_DIRECT);
  tell("open for writing", file);
  if (file < 0) file = reader;
  tell("write", (int)pwrite(file, aligned(PAGE, 0x5a), PAGE, 16 * ISO_SECTOR));
  uint64_t range[2] = {1 << 20, PAGE};
  tell("BLKDISCARD", ioctl(file, BLKDISCARD, range));
  tell("BLKSECDISCARD", ioctl(file, BLKSECDISCARD, range));
  tell("BLKZEROOUT", ioctl(file, BLKZEROOUT, range));
}

// ---- Raw SCSI commands --------------------------------------------------------------------------------------------

static void scsi(int file, const char *name, const uint8_t *command, int length, int is_write, void *data, unsigned size) {
  uint8_t sense[32] = {0};
  sg_io_hdr_t request = {
      .interface_id = 'S', .cmd_len = (unsigned char)length, .cmdp = (unsigned char *)command,
      .dxfer_direction = size == 0 ? SG_DXFER_NONE : is_write ? SG_DXFER_TO_DEV : SG_DXFER_FROM_DEV,
      .dxferp = data, .dxfer_len = size, .sbp = sense, .mx_sb_len = sizeof sense, .timeout = 10000};
  if (ioctl(file, SG_IO, &request) < 0) printf("%s=%s\n", name, strerror(errno));
  else if (request.status != 0 || request.host_status != 0)
    printf("%s=refused, sense %x/%02x\n", name, sense[2] & 15, sense[12]);
  else printf("%s=done\n", name);
}

static void send_scsi(const char *device) {
  int file = open(device, O_RDONLY | O_NONBLOCK);
  uint8_t *data = aligned(PAGE, 0);
  uint8_t unmap[24] = {0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 4};
  scsi(file, "READ(10)", (uint8_t[]){0x28, 0, 0, 0, 0, 16, 0, 0, 1, 0}, 10, 0, data, ISO_SECTOR);
  printf("its label=%.5s\n", data + 1);
  memset(data, 0x5a, PAGE);
  scsi(file, "WRITE(10)", (uint8_t[]){0x2a, 0, 0, 0, 0, 16, 0, 0, 1, 0}, 10, 1, data, ISO_SECTOR);
  scsi(file, "WRITE(16)", (uint8_t[]){0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, 0}, 16, 1, data, ISO_SECTOR);
  scsi(file, "WRITE AND VERIFY", (uint8_t[]){0x2e, 0, 0, 0, 0, 16, 0, 0, 1, 0}, 10, 1, data, ISO_SECTOR);
  scsi(file, "WRITE SAME(16)", (uint8_t[]){0x93, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, 0}, 16, 1, data, ISO_SECTOR);
  scsi(file, "UNMAP", (uint8_t[]){0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0}, 10, 1, unmap, sizeof unmap);
  scsi(file, "FORMAT UNIT", (uint8_t[]){0x04, 0, 0, 0, 0, 0}, 6, 0, NULL, 0);
  scsi(file, "MODE SELECT", (uint8_t[]){0x15, 0x10, 0, 0, 16, 0}, 6, 1, unmap, 16);
  scsi(file, "allow removal", (uint8_t[]){0x1e, 0, 0, 0, 0, 0}, 6, 0, NULL, 0);
  scsi(file, "lock", (uint8_t[]){0x1e, 0, 0, 0, 1, 0}, 6, 0, NULL, 0);
}

/** START STOP UNIT: LoEj without Start ejects, with it loads. */
static void eject(const char *device) {
  int file = open(device, O_RDONLY | O_NONBLOCK);
  scsi(file, "allow removal", (uint8_t[]){0x1e, 0, 0, 0, 0, 0}, 6, 0, NULL, 0);
  scsi(file, "eject", (uint8_t[]){0x1b, 0, 0, 0, 2, 0}, 6, 0, NULL, 0);
  uint8_t *data = aligned(PAGE, 0);
  scsi(file, "read while ejected", (uint8_t[]){0x28, 0, 0, 0, 0, 16, 0, 0, 1, 0}, 10, 0, data, ISO_SECTOR);
  scsi(file, "load", (uint8_t[]){0x1b, 0, 0, 0, 3, 0}, 6, 0, NULL, 0);
}

// ---- A virtio driver of its own (Virtual I/O Device 1.1, 4.1 and 5.2) ---------------------------------------------

static uint64_t physical(const void *memory) {
  uint64_t entry = 0;
  int map = open("/proc/self/pagemap", O_RDONLY);
  if (pread(map, &entry, 8, (off_t)((uintptr_t)memory / PAGE * 8)) != 8) exit(4);
  close(map);
  return (entry & ((1ULL << 55) - 1)) * PAGE + (uintptr_t)memory % PAGE;
}

struct part { volatile uint8_t *at; uint32_t multiplier; };

static volatile uint8_t *map_bar(const char *folder, int bar, uint32_t offset) {
  static volatile uint8_t *bars[6];
  if (bars[bar] == NULL) {
    char path[256];
    snprintf(path, sizeof path, "%s/resource%d", folder, bar);
    int file = open(path, O_RDWR | O_SYNC);
    struct stat found;
    if (file < 0 || fstat(file, &found) < 0) exit(5);
    void *memory = mmap(NULL, (size_t)found.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) exit(6);
    bars[bar] = memory;
  }
  return bars[bar] + offset;
}

/** The device's capabilities of kind 1 (common configuration) and 2 (notification). */
static void find_parts(const char *folder, struct part parts[3]) {
  char path[256];
  snprintf(path, sizeof path, "%s/config", folder);
  int file = open(path, O_RDWR);
  uint8_t config[256];
  if (file < 0 || pread(file, config, 256, 0) != 256) exit(7);
  uint16_t command = (uint16_t)(config[4] | config[5] << 8 | 6);
  if (pwrite(file, &command, 2, 4) != 2) exit(8);
  for (int at = config[0x34]; at != 0; at = config[at + 1]) {
    int kind = config[at + 3];
    if (config[at] != 9 || kind < 1 || kind > 2) continue;
    uint32_t offset, multiplier = 0;
    memcpy(&offset, config + at + 8, 4);
    if (kind == 2) memcpy(&multiplier, config + at + 16, 4);
    parts[kind] = (struct part){map_bar(folder, config[at + 4], offset), multiplier};
  }
  if (parts[1].at == NULL || parts[2].at == NULL) exit(9);
}

struct descriptor { uint64_t address; uint32_t length; uint16_t flags, next; };
struct ring { struct descriptor descriptors[8]; uint16_t avail_flags, avail_index, avail[8], pad[6]; uint16_t used_flags, used_index; uint32_t used[16]; };

static void drive_virtio(const char *folder) {
  struct part parts[3] = {0};
  find_parts(folder, parts);
  volatile uint8_t *common = parts[1].at;
  struct ring volatile *ring = aligned(PAGE, 0);
  uint8_t *buffer = aligned(PAGE, 0);
  common[20] = 0;
  while (common[20] != 0) usleep(1000);
  common[20] = 3;
  *(volatile uint32_t *)(common + 8) = 1;
  *(volatile uint32_t *)(common + 12) = 1; // VERSION_1, and nothing that tells it is read-only.
  *(volatile uint32_t *)(common + 8) = 0;
  *(volatile uint32_t *)(common + 12) = 0;
  common[20] = 11;
  *(volatile uint16_t *)(common + 22) = 0;
  *(volatile uint16_t *)(common + 24) = 8;
  const uint64_t places[3] = {physical((void *)ring), physical((void *)&ring->avail_flags), physical((void *)&ring->used_flags)};
  for (int i = 0; i < 3; i++) {
    *(volatile uint32_t *)(common + 32 + 8 * i) = (uint32_t)places[i];
    *(volatile uint32_t *)(common + 36 + 8 * i) = (uint32_t)(places[i] >> 32);
  }
  *(volatile uint16_t *)(common + 28) = 1;
  common[20] = 15;
  volatile uint16_t *bell = (volatile uint16_t *)(parts[2].at + *(volatile uint16_t *)(common + 30) * parts[2].multiplier);

  static const struct { const char *name; uint32_t kind; int is_read; unsigned size; } requests[] = {
      {"virtio read", 0, 1, SECTOR}, {"virtio write", 1, 0, SECTOR}, {"virtio write, long", 1, 0, 2048},
      {"virtio discard", 11, 0, 16}, {"virtio write zeroes", 13, 0, 16}, {"virtio secure erase", 14, 0, 16}, {"virtio flush", 4, 0, 0}};
  for (unsigned i = 0; i < sizeof requests / sizeof *requests; i++) {
    uint8_t *header = buffer, *status = buffer + 16, *data = buffer + 1024;
    memset(buffer, 0, PAGE);
    memcpy(header, &requests[i].kind, 4);
    const uint64_t sector = requests[i].kind <= 1 ? 16 * ISO_SECTOR / SECTOR : 0;
    memcpy(header + 8, &sector, 8);
    if (requests[i].kind == 1) memset(data, 0x5a, requests[i].size);
    if (requests[i].kind > 4) { uint64_t segment[2] = {2048, 8}; memcpy(data, segment, 16); }
    *status = 0xff;
    const int has_data = requests[i].size > 0;
    ring->descriptors[0] = (struct descriptor){physical(header), 16, 1, has_data ? 1 : 2};
    ring->descriptors[1] = (struct descriptor){physical(data), requests[i].size, requests[i].is_read ? 3 : 1, 2};
    ring->descriptors[2] = (struct descriptor){physical(status), 1, 2, 0};
    ring->avail[ring->avail_index % 8] = 0;
    __sync_synchronize();
    ring->avail_index++;
    __sync_synchronize();
    *bell = 0;
    for (int waits = 0; waits < 3000 && ring->used_index != ring->avail_index; waits++) usleep(1000);
    printf("%s=status %d\n", requests[i].name, *(volatile uint8_t *)status);
    if (requests[i].is_read) printf("it reads=%.5s\n", data + 1);
  }
  common[20] = 0;
}

// ---- Reads --------------------------------------------------------------------------------------------------------

/** Reads at random places, past the cache, beside one whole read; says whether every piece was the same. */
static void read_randomly(const char *device, int count) {
  int file = open(device, O_RDONLY);
  off_t size = lseek(file, 0, SEEK_END) / PAGE * PAGE;
  uint8_t *whole = malloc((size_t)size), *piece = aligned(PAGE, 0);
  for (off_t done = 0; done < size;) {
    ssize_t got = pread(file, whole + done, (size_t)(size - done), done);
    if (got <= 0) exit(10);
    done += got;
  }
  int direct = open(device, O_RDONLY | O_DIRECT);
  int wrong = 0;
  srand(1);
  for (int i = 0; i < count; i++) {
    off_t at = rand() % (size / PAGE) * PAGE;
    if (pread(direct, piece, PAGE, at) != PAGE || memcmp(piece, whole + at, PAGE) != 0) wrong++;
  }
  printf("random reads=%d of %d wrong\n", wrong, count);
}

int main(int count, char **words) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (count < 3) return 2;
  if (strcmp(words[1], "write") == 0) write_it(words[2]);
  else if (strcmp(words[1], "scsi") == 0) send_scsi(words[2]);
  else if (strcmp(words[1], "eject") == 0) eject(words[2]);
  else if (strcmp(words[1], "virtio") == 0) drive_virtio(words[2]);
  else if (strcmp(words[1], "read") == 0) read_randomly(words[2], 500);
  else return 2;
  return 0;
}
