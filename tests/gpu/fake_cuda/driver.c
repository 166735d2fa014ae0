// A stand-in for libcuda.so.1 whose two devices are the host, for tests of src/gpu/cuda on machines without a GPU.
//
// Device memory is host memory. The stream of a device is a queue that runs as late as the CUDA driver may run it, so bytes that a
// caller changes too early arrive changed. There is one kernel, `add` of src/gpu/cuda/on_device.rs, whose code is here and
// not in the module that is loaded. What is not freed at exit is an error.
//
// Prototypes and codes are those of cuda.h of CUDA 12.0. Only one thread may run tests.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  INVALID_CONTEXT = 201,
  INVALID_PTX = 218,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  CAPTURE_UNSUPPORTED = 900,
};

typedef struct {
  void (*run)(void *);
  void *argument;
  size_t bytes;
} Work;

typedef struct {
  Work work[8192];
  size_t count;
} Queue;

enum { DEVICES = 2 };

// A device with its primary context and its only stream.
typedef struct {
  char stream, module, kernel;
  Queue queue;
  Queue *capture;
  // Number of works that were queued and that have run.
  uint64_t queued, done;
} Device;

static Device devices[DEVICES];
// As in the real driver, each thread must make the context current. A context is the pointer to its device.
static __thread Device *current;
// Number of objects that are not freed.
static int live;

// Fails, as the real driver does, unless a context is current.
#define REQUIRE_CONTEXT                                                                                                \
  if (!current) return INVALID_CONTEXT
// Fails unless the stream is that of the current context.
#define REQUIRE_STREAM(given)                                                                                          \
  REQUIRE_CONTEXT;                                                                                                     \
  if ((given) != &current->stream) return INVALID_HANDLE

static void run_until(uint64_t target) {
  Queue *queue = &current->queue;
  size_t count = 0;
  for (; count < queue->count && current->done < target; count++, current->done++) {
    queue->work[count].run(queue->work[count].argument);
    free(queue->work[count].argument);
  }
  queue->count -= count;
  memmove(queue->work, queue->work + count, queue->count * sizeof(Work));
}

// Adds work to the stream of the current device, or to the graph that is being captured. Also called by the stand-in for cuBLASLt.
void fake_cuda_enqueue(void (*run)(void *), const void *argument, size_t bytes) {
  Queue *target = current->capture ? current->capture : &current->queue;
  if (target->count == sizeof(target->work) / sizeof(Work)) {
    if (current->capture) abort();
    run_until(current->done + 1);
  }
  void *copy = malloc(bytes);
  memcpy(copy, argument, bytes);
  target->work[target->count++] = (Work){run, copy, bytes};
  if (!current->capture) current->queued++;
}

static void report(void) {
  if (live == 0) return;
  fprintf(stderr, "fake driver: %d objects are not freed\n", live);
  _exit(1);
}

int cuInit(unsigned flags) {
  static int started;
  if (flags != 0) return INVALID_VALUE;
  if (!started++) atexit(report);
  return SUCCESS;
}

int cuDriverGetVersion(int *version) {
  *version = 12040;
  return SUCCESS;
}

int cuDeviceGetCount(int *count) {
  *count = DEVICES;
  return SUCCESS;
}

int cuDeviceGet(int *device, int ordinal) {
  *device = ordinal;
  return 0 <= ordinal && ordinal < DEVICES ? SUCCESS : INVALID_VALUE;
}

int cuDeviceGetName(char *name, int bytes, int device) {
  snprintf(name, bytes, "stand-in for GPU %d", device);
  return SUCCESS;
}

// Compute capability 8.0.
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  enum { COMPUTE_CAPABILITY_MAJOR = 75, COMPUTE_CAPABILITY_MINOR = 76 };
  if (attribute != COMPUTE_CAPABILITY_MAJOR && attribute != COMPUTE_CAPABILITY_MINOR) return INVALID_VALUE;
  *value = attribute == COMPUTE_CAPABILITY_MAJOR ? 8 : 0;
  return SUCCESS;
}

int cuDeviceTotalMem_v2(size_t *bytes, int device) {
  *bytes = (size_t)1 << 32;
  return SUCCESS;
}

// NVRTC 13 asks for this.
int cuGetExportTable(const void **table, const void *id) {
  return NOT_FOUND;
}

int cuDevicePrimaryCtxRetain(void **result, int device) {
  *result = &devices[device];
  live++;
  return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
  live--;
  return SUCCESS;
}

int cuCtxSetCurrent(void *new) {
  current = new;
  return SUCCESS;
}

int cuStreamCreate(void **result, unsigned flags) {
  REQUIRE_CONTEXT;
  *result = &current->stream;
  live++;
  return SUCCESS;
}

int cuStreamDestroy_v2(void *stream) {
  live--;
  return SUCCESS;
}

int cuStreamSynchronize(void *stream) {
  REQUIRE_STREAM(stream);
  if (current->capture) return CAPTURE_UNSUPPORTED;
  run_until(current->queued);
  return SUCCESS;
}

int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
  REQUIRE_CONTEXT;
  if (bytes == 0) return INVALID_VALUE;
  if (bytes > (size_t)1 << 31) return OUT_OF_MEMORY;
  *address = (uint64_t)aligned_alloc(256, (bytes + 255) / 256 * 256);
  memset((void *)*address, 0xa5, bytes);
  live++;
  return SUCCESS;
}

int cuMemFree_v2(uint64_t address) {
  REQUIRE_CONTEXT;
  if (current->queue.count > 0) {
    fprintf(stderr, "fake driver: memory is freed before work is done\n");
    abort();
  }
  free((void *)address);
  live--;
  return SUCCESS;
}

int cuMemGetInfo_v2(size_t *free, size_t *total) {
  REQUIRE_CONTEXT;
  *free = (size_t)1 << 31;
  *total = (size_t)1 << 32;
  return SUCCESS;
}

int cuMemHostAlloc(void **result, size_t bytes, unsigned flags) {
  REQUIRE_CONTEXT;
  *result = malloc(bytes);
  live++;
  return SUCCESS;
}

int cuMemFreeHost(void *memory) {
  free(memory);
  live--;
  return SUCCESS;
}

typedef struct {
  void *to;
  const void *from;
  size_t bytes;
} Copy;

static void copy(void *argument) {
  Copy *copy = argument;
  memcpy(copy->to, copy->from, copy->bytes);
}

static int enqueue_copy(void *to, const void *from, size_t bytes, void *stream) {
  REQUIRE_STREAM(stream);
  Copy argument = {to, from, bytes};
  fake_cuda_enqueue(copy, &argument, sizeof argument);
  return SUCCESS;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
  return enqueue_copy((void *)to, from, bytes, stream);
}

int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
  return enqueue_copy(to, (void *)from, bytes, stream);
}

int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
  return enqueue_copy((void *)to, (void *)from, bytes, stream);
}

// An event holds the number of works before it.
int cuEventCreate(uint64_t **event, unsigned flags) {
  REQUIRE_CONTEXT;
  *event = calloc(1, sizeof **event);
  live++;
  return SUCCESS;
}

int cuEventDestroy_v2(uint64_t *event) {
  free(event);
  live--;
  return SUCCESS;
}

int cuEventRecord(uint64_t *event, void *stream) {
  REQUIRE_STREAM(stream);
  *event = current->queued;
  return SUCCESS;
}

int cuEventSynchronize(uint64_t *event) {
  REQUIRE_CONTEXT;
  run_until(*event);
  return SUCCESS;
}

int cuStreamBeginCapture_v2(void *stream, int mode) {
  REQUIRE_STREAM(stream);
  if (current->capture) return INVALID_VALUE;
  current->capture = calloc(1, sizeof *current->capture);
  return SUCCESS;
}

int cuStreamEndCapture(void *stream, Queue **graph) {
  REQUIRE_STREAM(stream);
  *graph = current->capture;
  current->capture = NULL;
  live++;
  return SUCCESS;
}

static int destroy_graph(Queue *graph) {
  for (size_t i = 0; i < graph->count; i++) free(graph->work[i].argument);
  free(graph);
  live--;
  return SUCCESS;
}

int cuGraphDestroy(Queue *graph) {
  return destroy_graph(graph);
}

int cuGraphExecDestroy(Queue *graph) {
  return destroy_graph(graph);
}

int cuGraphInstantiateWithFlags(Queue **result, const Queue *graph, unsigned long long flags) {
  REQUIRE_CONTEXT;
  *result = malloc(sizeof **result);
  **result = *graph;
  for (size_t i = 0; i < graph->count; i++) {
    Work *work = &(*result)->work[i];
    work->argument = memcpy(malloc(work->bytes), work->argument, work->bytes);
  }
  live++;
  return SUCCESS;
}

int cuGraphUpload(Queue *graph, void *stream) {
  REQUIRE_STREAM(stream);
  return current->capture ? CAPTURE_UNSUPPORTED : SUCCESS;
}

int cuGraphLaunch(Queue *graph, void *stream) {
  REQUIRE_STREAM(stream);
  for (size_t i = 0; i < graph->count; i++)
    fake_cuda_enqueue(graph->work[i].run, graph->work[i].argument, graph->work[i].bytes);
  return SUCCESS;
}

// Takes machine code and PTX, without reading it.
int cuModuleLoadDataEx(void **result, const char *image, unsigned count, const int *options, void **values) {
  enum { ERROR_LOG_BUFFER = 5, ERROR_LOG_BUFFER_SIZE_BYTES = 6 };
  REQUIRE_CONTEXT;
  if (count != 2 || options[0] != ERROR_LOG_BUFFER || options[1] != ERROR_LOG_BUFFER_SIZE_BYTES) return INVALID_VALUE;
  if (memcmp(image, "\177ELF", 4) != 0 && !strstr(image, ".version")) {
    snprintf(values[0], (size_t)values[1], "this is not PTX");
    return INVALID_PTX;
  }
  *result = &current->module;
  live++;
  return SUCCESS;
}

int cuModuleUnload(void *module) {
  live--;
  return SUCCESS;
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
  REQUIRE_CONTEXT;
  *function = &current->kernel;
  return strcmp(name, "add") == 0 ? SUCCESS : NOT_FOUND;
}

typedef struct {
  float *x;
  int n;
  float a;
} Add;

static void add(void *argument) {
  Add *add = argument;
  for (int i = 0; i < add->n; i++) add->x[i] += add->a;
}

int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared_bytes, void *stream, void **parameters, void **extra) {
  REQUIRE_STREAM(stream);
  if (function != &current->kernel || grid_x * grid_y * grid_z == 0 || block_x > 1024 || block_y != 1 || block_z != 1 || extra)
    return INVALID_VALUE;
  Add argument = {*(float **)parameters[0], *(int *)parameters[1], *(float *)parameters[2]};
  fake_cuda_enqueue(add, &argument, sizeof argument);
  return SUCCESS;
}
