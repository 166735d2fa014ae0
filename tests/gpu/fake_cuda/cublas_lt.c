// A stand-in for libcublasLt.so.12: computes `d = alpha a^T b + beta c + bias` from the descriptors, one value after the
// other, in the stream of the stand-in for the driver.
//
// Prototypes, attributes and codes are those of cublasLt.h of CUDA 12.1. A descriptor that the real library would reject,
// or that our products never have, is an error.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
// cudaDataType_t
enum { R_32F = 0, R_16F = 2, R_16BF = 14 };
enum { OP_T = 1, COMPUTE_32F = 68, EPILOGUE_DEFAULT = 1, EPILOGUE_BIAS = 4, WORKSPACE_BYTES = 32 << 20 };

typedef struct {
  int32_t transpose_a;
  uint32_t epilogue;
  const void *bias;
} Operation;

typedef struct {
  int type;
  uint64_t rows, columns;
  int64_t leading;
} Layout;

typedef struct {
  uint64_t workspace_bytes;
  uint32_t reduction_schemes;
  uint32_t alignments[4];
} Preference;

typedef struct {
  uint64_t data[8];
} Algorithm;

typedef struct {
  Algorithm algorithm;
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
} Heuristic;

typedef struct {
  Operation operation;
  Layout a, b, c, d;
  const void *a_values, *b_values, *c_values;
  void *d_values;
  float alpha, beta;
} Product;

static char library;
// Number of objects that are not freed.
static int live;

void fake_cuda_enqueue(void (*run)(void *), const void *argument, size_t bytes);

static void report(void) {
  if (live == 0) return;
  fprintf(stderr, "fake cuBLASLt: %d objects are not freed\n", live);
  _exit(1);
}

static int create(void **result, size_t bytes) {
  *result = calloc(1, bytes);
  live++;
  return SUCCESS;
}

static int destroy(void *object) {
  free(object);
  live--;
  return SUCCESS;
}

// Copies an attribute whose size is that of the field.
#define SET(field)                                                                                                     \
  if (bytes != sizeof(field)) return INVALID_VALUE;                                                                    \
  memcpy(&(field), value, bytes);                                                                                      \
  return SUCCESS

size_t cublasLtGetCudartVersion(void) {
  return 12010;
}

int cublasLtCreate(void **handle) {
  static int started;
  if (!started++) atexit(report);
  *handle = &library;
  live++;
  return SUCCESS;
}

int cublasLtDestroy(void *handle) {
  live--;
  return SUCCESS;
}

int cublasLtMatmulDescCreate(void **operation, int compute_type, int scale_type) {
  if (compute_type != COMPUTE_32F || scale_type != R_32F) return NOT_SUPPORTED;
  create(operation, sizeof(Operation));
  ((Operation *)*operation)->epilogue = EPILOGUE_DEFAULT;
  return SUCCESS;
}

int cublasLtMatmulDescDestroy(void *operation) {
  return destroy(operation);
}

int cublasLtMatmulDescSetAttribute(Operation *operation, int attribute, const void *value, size_t bytes) {
  enum { TRANSA = 3, EPILOGUE = 7, BIAS_POINTER = 8 };
  switch (attribute) {
  case TRANSA: SET(operation->transpose_a);
  case EPILOGUE: SET(operation->epilogue);
  case BIAS_POINTER: SET(operation->bias);
  default: return INVALID_VALUE;
  }
}

int cublasLtMatrixLayoutCreate(void **layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
  create(layout, sizeof(Layout));
  *(Layout *)*layout = (Layout){type, rows, columns, leading};
  return SUCCESS;
}

int cublasLtMatrixLayoutDestroy(void *layout) {
  return destroy(layout);
}

int cublasLtMatmulPreferenceCreate(void **preference) {
  return create(preference, sizeof(Preference));
}

int cublasLtMatmulPreferenceDestroy(void *preference) {
  return destroy(preference);
}

int cublasLtMatmulPreferenceSetAttribute(Preference *preference, int attribute, const void *value, size_t bytes) {
  enum { MAX_WORKSPACE_BYTES = 1, REDUCTION_SCHEME_MASK = 3, MIN_ALIGNMENT_A_BYTES = 5, MIN_ALIGNMENT_D_BYTES = 8 };
  if (attribute >= MIN_ALIGNMENT_A_BYTES && attribute <= MIN_ALIGNMENT_D_BYTES) {
    SET(preference->alignments[attribute - MIN_ALIGNMENT_A_BYTES]);
  }
  switch (attribute) {
  case MAX_WORKSPACE_BYTES: SET(preference->workspace_bytes);
  case REDUCTION_SCHEME_MASK: SET(preference->reduction_schemes);
  default: return INVALID_VALUE;
  }
}

static uint32_t alignment(const void *values) {
  uint32_t bytes = 256;
  while ((uintptr_t)values % bytes != 0) bytes /= 2;
  return bytes;
}

// The "algorithm" holds the alignments for which it was chosen.
int cublasLtMatmulAlgoGetHeuristic(void *handle, const Operation *operation, const Layout *a, const Layout *b,
                                   const Layout *c, const Layout *d, const Preference *preference, int wanted,
                                   Heuristic *results, int *found) {
  if (handle != &library || wanted < 1 || preference->workspace_bytes != WORKSPACE_BYTES) return INVALID_VALUE;
  *results = (Heuristic){.state = SUCCESS};
  for (int i = 0; i < 4; i++) results->algorithm.data[i] = preference->alignments[i];
  results->algorithm.data[4] = operation->epilogue == EPILOGUE_BIAS ? alignment(operation->bias) : 0;
  *found = 1;
  return SUCCESS;
}

static float get(const void *values, int type, size_t index) {
  if (type == R_32F) return ((const float *)values)[index];
  if (type == R_16F) return ((const _Float16 *)values)[index];
  uint32_t bits = (uint32_t)((const uint16_t *)values)[index] << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Truncates to bfloat16, which is exact for the small integers of the tests.
static void put(void *values, int type, size_t index, float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if (type == R_32F) ((float *)values)[index] = value;
  if (type == R_16F) ((_Float16 *)values)[index] = (_Float16)value;
  if (type == R_16BF) ((uint16_t *)values)[index] = (uint16_t)(bits >> 16);
}

static void compute(void *argument) {
  const Product *p = argument;
  for (uint64_t column = 0; column < p->d.columns; column++) {
    for (uint64_t row = 0; row < p->d.rows; row++) {
      float sum = 0;
      for (uint64_t i = 0; i < p->a.rows; i++)
        sum += get(p->a_values, p->a.type, i + row * p->a.leading) * get(p->b_values, p->b.type, i + column * p->b.leading);
      sum *= p->alpha;
      if (p->beta != 0) sum += p->beta * get(p->c_values, p->c.type, row + column * p->c.leading);
      if (p->operation.epilogue == EPILOGUE_BIAS) sum += get(p->operation.bias, p->d.type, row);
      put(p->d_values, p->d.type, row + column * p->d.leading, sum);
    }
  }
}

int cublasLtMatmul(void *handle, const Operation *operation, const float *alpha, const void *a_values, const Layout *a,
                   const void *b_values, const Layout *b, const float *beta, const void *c_values, const Layout *c,
                   void *d_values, const Layout *d, const Algorithm *algorithm, void *workspace, size_t workspace_bytes,
                   void *stream) {
  Product product = {*operation, *a, *b, *c, *d, a_values, b_values, c_values, d_values, *alpha, *beta};
  if (handle != &library || !workspace || workspace_bytes != WORKSPACE_BYTES || operation->transpose_a != OP_T)
    return INVALID_VALUE;
  if (a->rows != b->rows || a->columns != d->rows || b->columns != d->columns || a->type != b->type) return INVALID_VALUE;
  if (c->type != d->type || c->rows != d->rows || c->columns != d->columns) return INVALID_VALUE;
  // A real algorithm that expects better alignments would stop the device.
  const void *values[] = {a_values, b_values, c_values, d_values};
  for (int i = 0; i < 4; i++)
    if (alignment(values[i]) < algorithm->data[i]) return INVALID_VALUE;
  if (operation->epilogue == EPILOGUE_BIAS && alignment(operation->bias) < algorithm->data[4]) return INVALID_VALUE;
  fake_cuda_enqueue(compute, &product, sizeof product);
  return SUCCESS;
}
