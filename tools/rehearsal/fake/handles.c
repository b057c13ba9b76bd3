/* The handles of cuBLAS, cuRAND and cuSOLVER, which MXNet passes on without a look inside. */
#include <stddef.h>

static char something;

int cublasCreate_v2(void **handle) {
  *handle = &something;
  return 0;
}

int cublasGetMathMode(void *handle, int *mode) {
  (void)handle;
  *mode = 0;
  return 0;
}

int curandCreateGenerator(void **generator, int type) {
  (void)type;
  *generator = &something;
  return 0;
}

int cusolverDnCreate(void **handle) {
  *handle = &something;
  return 0;
}
