/* A false libnvidia-ml.so.1 for the lab: the functions that nvidia-ml-py binds, over a text file.
 *
 * The file is $FALSE_NVML_GPUS, else /etc/mlbox-lab/gpus. It is read anew in every call, so a test
 * makes a GPU busy, hot or lost by rewriting it (see gpus.py for the format). A line
 * "include PATH" goes on with another file; "only UUID UUID…" before it shows just those GPUs,
 * renumbered, the way the NVIDIA container runtime does.
 *
 * No symbol here is newer than glibc 2.14 (no stdio, no strtol), so one build serves every guest.
 */
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define MAX_GPUS 32
#define MAX_PROCS 64
#define MAX_FILE 65536
#define MIB (1024ULL * 1024ULL)

enum {
  OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
  INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, VERSION_MISMATCH = 25
};

typedef unsigned long long u64;
typedef struct { unsigned pid; u64 mib; char kind; } Proc;
typedef struct {
  char uuid[96], name[96], bus[32], of[96]; /* of: an instance (MIG) of that GPU */
  u64 memory, used;
  unsigned util, temp, power, limit, minor, major_cc, minor_cc, compute_mode, persistence, mig;
  int lost, procs;
  Proc proc[MAX_PROCS];
} Gpu;
typedef struct {
  char driver[80], nvml[80], only[4096];
  int cuda, fail, count;
  Gpu gpu[MAX_GPUS];
} Box;
/* A handle keeps its UUID, so it survives a change of the file. */
typedef struct { char uuid[96]; } Handle;

static int started;
static Handle handles[256];

static unsigned number(const char *s) {
  unsigned n = 0;
  while (*s >= '0' && *s <= '9') n = n * 10 + (unsigned)(*s++ - '0');
  return n;
}

static const char *past(const char *s) {
  while (*s && *s != ' ') s++;
  while (*s == ' ') s++;
  return s;
}

static void copy(char *to, size_t room, const char *from) {
  size_t n = strlen(from);
  if (n >= room) n = room - 1;
  memcpy(to, from, n);
  to[n] = 0;
}

static void gpu_line(Gpu *g, const char *key, const char *value) {
  if (!strcmp(key, "name")) copy(g->name, sizeof g->name, value);
  else if (!strcmp(key, "bus")) copy(g->bus, sizeof g->bus, value);
  else if (!strcmp(key, "mig")) g->mig = number(value);
  else if (!strcmp(key, "of")) copy(g->of, sizeof g->of, value);
  else if (!strcmp(key, "memory")) g->memory = number(value);
  else if (!strcmp(key, "used")) g->used = number(value);
  else if (!strcmp(key, "util")) g->util = number(value);
  else if (!strcmp(key, "temp")) g->temp = number(value);
  else if (!strcmp(key, "power")) g->power = number(value);
  else if (!strcmp(key, "limit")) g->limit = number(value);
  else if (!strcmp(key, "minor")) g->minor = number(value);
  else if (!strcmp(key, "mode")) g->compute_mode = number(value);
  else if (!strcmp(key, "persistence")) g->persistence = number(value);
  else if (!strcmp(key, "lost")) g->lost = (int)number(value);
  else if (!strcmp(key, "capability")) {
    const char *dot = strchr(value, '.');
    g->major_cc = number(value);
    g->minor_cc = dot ? number(dot + 1) : 0;
  } else if (!strcmp(key, "proc") && g->procs < MAX_PROCS) {
    Proc *p = &g->proc[g->procs++];
    const char *mib = past(value), *kind = past(mib);
    p->pid = number(value);
    p->mib = number(mib);
    p->kind = *kind ? *kind : 'C';
  }
}

static int load_file(Box *box, const char *path, int depth) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return DRIVER_NOT_LOADED;
  char *text = malloc(MAX_FILE);
  size_t size = 0;
  ssize_t got;
  while (text && size < MAX_FILE - 1 && (got = read(fd, text + size, MAX_FILE - 1 - size)) > 0)
    size += (size_t)got;
  close(fd);
  if (!text) return DRIVER_NOT_LOADED;
  text[size] = 0;
  Gpu *gpu = NULL;
  int rc = OK;
  for (char *line = text, *next; line && *line; line = next) {
    next = strchr(line, '\n');
    if (next) *next++ = 0;
    char *value = strchr(line, ' ');
    if (!value || *line == '#') continue;
    *value++ = 0;
    if (!strcmp(line, "include") && depth < 3) rc = load_file(box, value, depth + 1);
    else if (!strcmp(line, "only")) copy(box->only, sizeof box->only, value);
    else if (!strcmp(line, "driver")) copy(box->driver, sizeof box->driver, value);
    else if (!strcmp(line, "nvml")) copy(box->nvml, sizeof box->nvml, value);
    else if (!strcmp(line, "cuda")) box->cuda = (int)number(value);
    else if (!strcmp(line, "fail")) box->fail = (int)number(value);
    else if (!strcmp(line, "gpu")) {
      gpu = NULL;
      if (box->count < MAX_GPUS && (!*box->only || strstr(box->only, value))) {
        gpu = &box->gpu[box->count++];
        copy(gpu->uuid, sizeof gpu->uuid, value);
      }
    } else if (gpu) gpu_line(gpu, line, value);
  }
  free(text);
  return rc;
}

static int load(Box **out) {
  const char *path = getenv("FALSE_NVML_GPUS");
  Box *box = calloc(1, sizeof *box);
  *out = box;
  if (!box) return DRIVER_NOT_LOADED;
  int rc = load_file(box, path && *path ? path : "/etc/mlbox-lab/gpus", 0);
  if (rc == OK && box->fail) rc = box->fail;
  if (rc != OK) { free(box); *out = NULL; }
  return rc;
}

static int find(const void *handle, Box **box, Gpu **gpu) {
  if (!started) return UNINITIALIZED;
  if (!handle) return INVALID_ARGUMENT;
  int rc = load(box);
  if (rc != OK) return rc;
  for (int i = 0; i < (*box)->count; i++)
    if (!strcmp((*box)->gpu[i].uuid, ((const Handle *)handle)->uuid)) {
      *gpu = &(*box)->gpu[i];
      if (!(*gpu)->lost) return OK;
      break;
    }
  free(*box);
  return GPU_IS_LOST; /* also a GPU that has gone from the file since */
}

/* The Nth instance of a GPU, or (of: "") the Nth GPU. */
static Gpu *nth(Box *box, const char *of, unsigned n) {
  for (int i = 0; i < box->count; i++)
    if (!strcmp(box->gpu[i].of, of) && !n--) return &box->gpu[i];
  return NULL;
}

static unsigned how_many(Box *box, const char *of) {
  unsigned n = 0;
  while (nth(box, of, n)) n++;
  return n;
}

static int handle_of(const char *uuid, void **out) {
  for (int i = 0; i < 256; i++) {
    if (!handles[i].uuid[0]) copy(handles[i].uuid, sizeof handles[i].uuid, uuid);
    if (!strcmp(handles[i].uuid, uuid)) { *out = &handles[i]; return OK; }
  }
  return NOT_FOUND;
}

static int text_out(char *to, unsigned room, const char *from) {
  if (strlen(from) >= room) return INSUFFICIENT_SIZE;
  copy(to, room, from);
  return OK;
}

/* One getter: WORK runs with `g` set to the GPU. */
#define GETTER(NAME, ARGS, WORK)                                    \
  API int NAME(void *handle, ARGS) {                                \
    Box *box; Gpu *g;                                               \
    int rc = find(handle, &box, &g);                                \
    if (rc != OK) return rc;                                        \
    WORK;                                                           \
    free(box);                                                      \
    return rc;                                                      \
  }
#define COMMA ,

API int nvmlInitWithFlags(unsigned flags) {
  Box *box;
  (void)flags;
  int rc = load(&box);
  if (rc == OK) { started++; free(box); }
  return rc;
}
API int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
API int nvmlInit(void) { return nvmlInitWithFlags(0); }
API int nvmlShutdown(void) {
  if (!started) return UNINITIALIZED;
  started--;
  return OK;
}

API const char *nvmlErrorString(int code) {
  switch (code) {
    case OK: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case GPU_IS_LOST: return "GPU is lost";
    case VERSION_MISMATCH: return "Argument Version Mismatch";
    default: return "Unknown Error";
  }
}

static int system_text(char *to, unsigned room, size_t field, const char *otherwise) {
  Box *box;
  if (!started) return UNINITIALIZED;
  int rc = load(&box);
  if (rc != OK) return rc;
  const char *text = (const char *)box + field;
  rc = text_out(to, room, *text ? text : otherwise);
  free(box);
  return rc;
}
API int nvmlSystemGetDriverVersion(char *to, unsigned room) {
  return system_text(to, room, offsetof(Box, driver), "550.54.15");
}
API int nvmlSystemGetNVMLVersion(char *to, unsigned room) {
  return system_text(to, room, offsetof(Box, nvml), "12.550.54.15");
}
API int nvmlSystemGetCudaDriverVersion_v2(int *out) {
  Box *box;
  int rc = load(&box);
  if (rc != OK) return rc;
  *out = box->cuda ? box->cuda : 12040;
  free(box);
  return OK;
}
API int nvmlSystemGetCudaDriverVersion(int *out) { return nvmlSystemGetCudaDriverVersion_v2(out); }

API int nvmlSystemGetProcessName(unsigned pid, char *to, unsigned room) {
  char path[40] = "/proc/", digits[12];
  int n = 0, at = 6;
  do digits[n++] = (char)('0' + pid % 10); while (pid /= 10);
  while (n) path[at++] = digits[--n];
  memcpy(path + at, "/cmdline", 9);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0 || !room) { if (fd >= 0) close(fd); return NOT_FOUND; }
  ssize_t got = read(fd, to, room - 1);
  close(fd);
  to[got > 0 ? got : 0] = 0;
  return OK;
}

API int nvmlDeviceGetCount_v2(unsigned *out) {
  Box *box;
  if (!started) return UNINITIALIZED;
  int rc = load(&box);
  if (rc != OK) return rc;
  *out = how_many(box, "");
  free(box);
  return OK;
}
API int nvmlDeviceGetCount(unsigned *out) { return nvmlDeviceGetCount_v2(out); }

API int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) {
  Box *box;
  if (!started) return UNINITIALIZED;
  int rc = load(&box);
  if (rc != OK) return rc;
  const Gpu *g = nth(box, "", index);
  if (!g) rc = INVALID_ARGUMENT;
  else rc = g->lost ? GPU_IS_LOST : handle_of(g->uuid, out);
  free(box);
  return rc;
}
API int nvmlDeviceGetHandleByIndex(unsigned i, void **out) { return nvmlDeviceGetHandleByIndex_v2(i, out); }

static int handle_by(const char *key, size_t field, void **out) {
  Box *box;
  if (!started) return UNINITIALIZED;
  int rc = load(&box);
  if (rc != OK) return rc;
  rc = NOT_FOUND;
  for (int i = 0; i < box->count; i++)
    if (!strcmp((char *)&box->gpu[i] + field, key))
      rc = box->gpu[i].lost ? GPU_IS_LOST : handle_of(box->gpu[i].uuid, out);
  free(box);
  return rc;
}
API int nvmlDeviceGetHandleByUUID(const char *uuid, void **out) {
  return handle_by(uuid, offsetof(Gpu, uuid), out);
}
API int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **out) {
  return handle_by(bus, offsetof(Gpu, bus), out);
}

GETTER(nvmlDeviceGetIndex, unsigned *out, *out = (unsigned)(g - box->gpu))
GETTER(nvmlDeviceGetUUID, char *to COMMA unsigned room, rc = text_out(to, room, g->uuid))
GETTER(nvmlDeviceGetName, char *to COMMA unsigned room, rc = text_out(to, room, g->name))
GETTER(nvmlDeviceGetMinorNumber, unsigned *out, *out = g->minor)
GETTER(nvmlDeviceGetTemperature, int sensor COMMA unsigned *out, (void)sensor; *out = g->temp)
GETTER(nvmlDeviceGetPowerUsage, unsigned *out, *out = g->power * 1000)
GETTER(nvmlDeviceGetPowerManagementLimit, unsigned *out, *out = g->limit * 1000)
GETTER(nvmlDeviceGetEnforcedPowerLimit, unsigned *out, *out = g->limit * 1000)
GETTER(nvmlDeviceGetComputeMode, unsigned *out, *out = g->compute_mode)
GETTER(nvmlDeviceGetPersistenceMode, unsigned *out, *out = g->persistence)
GETTER(nvmlDeviceGetCudaComputeCapability, int *a COMMA int *b,
       *a = (int)g->major_cc; *b = (int)g->minor_cc)
GETTER(nvmlDeviceGetMigMode, unsigned *now COMMA unsigned *next,
       *now = *next = g->mig; if (!*now) rc = NOT_SUPPORTED)
GETTER(nvmlDeviceGetMaxMigDeviceCount, unsigned *out, *out = *g->of ? 0 : 7)
GETTER(nvmlDeviceGetMigDeviceHandleByIndex, unsigned index COMMA void **out, {
  const Gpu *instance = nth(box, g->uuid, index);
  rc = instance ? handle_of(instance->uuid, out) : NOT_FOUND;
})
GETTER(nvmlDeviceGetEccMode, unsigned *now COMMA unsigned *next,
       (void)now; (void)next; rc = NOT_SUPPORTED)
GETTER(nvmlDeviceGetTotalEccErrors, int type COMMA int counter COMMA u64 *out,
       (void)type; (void)counter; (void)out; rc = NOT_SUPPORTED)
GETTER(nvmlDeviceGetMemoryErrorCounter, int t COMMA int c COMMA int l COMMA u64 *out,
       (void)t; (void)c; (void)l; (void)out; rc = NOT_SUPPORTED)

static u64 used_mib(const Gpu *g) {
  u64 sum = g->used;
  for (int i = 0; i < g->procs; i++) sum += g->proc[i].mib;
  return sum < g->memory ? sum : g->memory;
}

struct memory { u64 total, free, used; };
GETTER(nvmlDeviceGetMemoryInfo, struct memory *out, {
  if (g->mig) rc = NO_PERMISSION; /* of a divided one, but for root */
  out->total = g->memory * MIB;
  out->used = used_mib(g) * MIB;
  out->free = out->total - out->used;
})

struct memory_v2 { unsigned version; u64 total, reserved, free, used; };
GETTER(nvmlDeviceGetMemoryInfo_v2, struct memory_v2 *out, {
  if (out->version != (sizeof(struct memory_v2) | 2u << 24)) rc = VERSION_MISMATCH;
  out->total = g->memory * MIB;
  out->reserved = 0;
  out->used = used_mib(g) * MIB;
  out->free = out->total - out->used;
})

struct utilization { unsigned gpu, memory; };
GETTER(nvmlDeviceGetUtilizationRates, struct utilization *out, {
  out->gpu = g->util;
  out->memory = g->memory ? (unsigned)(used_mib(g) * 100 / g->memory) : 0;
})

static unsigned hex(const char *s) {
  unsigned n = 0;
  for (;; s++) {
    char c = *s;
    if (c >= '0' && c <= '9') n = n * 16 + (unsigned)(c - '0');
    else if (c >= 'a' && c <= 'f') n = n * 16 + (unsigned)(c - 'a' + 10);
    else if (c >= 'A' && c <= 'F') n = n * 16 + (unsigned)(c - 'A' + 10);
    else return n;
  }
}
struct pci {
  char legacy[16];
  unsigned domain, bus, device, pci_id, subsystem_id;
  char bus_id[32];
};
GETTER(nvmlDeviceGetPciInfo_v3, struct pci *out, { /* bus is DDDDDDDD:BB:DD.F */
  memset(out, 0, sizeof *out);
  copy(out->bus_id, sizeof out->bus_id, g->bus);
  if (strlen(g->bus) == 16) {
    copy(out->legacy, sizeof out->legacy, g->bus + 4);
    out->domain = hex(g->bus);
    out->bus = hex(g->bus + 9);
    out->device = hex(g->bus + 12);
  }
  out->pci_id = 0x268410deu;
})

struct process { unsigned pid; u64 memory; unsigned gpu_instance, compute_instance; };
static int processes(void *handle, unsigned *count, struct process *out, char kind) {
  Box *box;
  Gpu *g;
  int rc = find(handle, &box, &g);
  if (rc != OK) return rc;
  unsigned n = 0, room = out ? *count : 0;
  for (int i = 0; i < g->procs; i++) {
    if (g->proc[i].kind != kind) continue;
    if (n < room) {
      out[n].pid = g->proc[i].pid;
      out[n].memory = g->proc[i].mib * MIB;
      out[n].gpu_instance = out[n].compute_instance = 0xffffffffu;
    }
    n++;
  }
  *count = n;
  free(box);
  return n > room ? INSUFFICIENT_SIZE : OK;
}
#define PROCESSES(NAME, KIND)                                                     \
  API int NAME(void *handle, unsigned *count, struct process *out) {              \
    return processes(handle, count, out, KIND);                                   \
  }
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2, 'C')
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, 'C')
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2, 'G')
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, 'G')
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v2, 'M')
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3, 'M')
