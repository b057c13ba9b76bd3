/* libcudart without a GPU: memory of a card is address space, copies to and from it are real, kernels do nothing.
 *
 * Memory is mapped and not reserved, so that a card of 24 GB fits into a machine of 8; every allocation is counted, and
 * fails where the card of `settings.h` would be full. The functions fake_*() are for the program that runs the rehearsal.
 */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "settings.h"

enum { MOST_GPUS = 16, BUCKETS = 1 << 16 };
#define PAGE ((size_t)4096)
#define LARGE ((size_t)2 << 20)      /* from here on memory is given in multiples of it */
#define CARRIED_OUT ((size_t)4 << 20) /* copies within a card are made up to this size: larger ones would take memory */

struct block {
  void *start;
  size_t bytes;
  int device;
  struct block *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct block *blocks[BUCKETS];
static size_t used[MOST_GPUS], peak[MOST_GPUS];
static long launches;
static __thread int device;
static __thread cudaError_t last_error;

static cudaError_t failed(cudaError_t error) {
  last_error = error;
  return error;
}

/* ------------------------------------------------------------------------------------------- for the rehearsal */

size_t fake_used(int index) { return used[index]; }

size_t fake_peak(int index) { return peak[index]; }

void fake_reset_peaks(void) {
  pthread_mutex_lock(&lock);
  memcpy(peak, used, sizeof peak);
  pthread_mutex_unlock(&lock);
}

long fake_launches(void) { return launches; }

/* ------------------------------------------------------------------------------------------------------ memory */

static struct block **place_of(const void *start) {
  struct block **place = &blocks[((uintptr_t)start >> 12) * 2654435761u % BUCKETS];
  while (*place != NULL && (*place)->start != start) place = &(*place)->next;
  return place;
}

static size_t rounded(size_t bytes) {
  size_t step = bytes < LARGE ? PAGE : LARGE;
  return bytes == 0 ? PAGE : (bytes + step - 1) / step * step;
}

cudaError_t cudaMalloc(void **pointer, size_t bytes) {
  size_t size = rounded(bytes);
  void *start = MAP_FAILED;
  struct block *block = NULL;
  *pointer = NULL;
  pthread_mutex_lock(&lock);
  if (used[device] + size + memory_of_others() <= memory_of_card()) {
    start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start != MAP_FAILED) block = malloc(sizeof *block);
  }
  if (block != NULL) {
    struct block **place = place_of(start);
    *block = (struct block){start, size, device, NULL};
    *place = block;
    used[device] += size;
    if (used[device] > peak[device]) peak[device] = used[device];
    *pointer = start;
  }
  pthread_mutex_unlock(&lock);
  return block != NULL ? cudaSuccess : failed(cudaErrorMemoryAllocation);
}

cudaError_t cudaMallocPitch(void **pointer, size_t *pitch, size_t width, size_t height) {
  *pitch = width;
  return cudaMalloc(pointer, width * height);
}

cudaError_t cudaFree(void *pointer) {
  pthread_mutex_lock(&lock);
  struct block **place = place_of(pointer), *block = *place;
  if (block != NULL) {
    *place = block->next;
    used[block->device] -= block->bytes;
    munmap(block->start, block->bytes);
    free(block);
  }
  pthread_mutex_unlock(&lock);
  return block != NULL || pointer == NULL ? cudaSuccess : failed(cudaErrorInvalidValue);
}

cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned flags) {
  (void)flags;
  *pointer = malloc(bytes);
  return *pointer != NULL ? cudaSuccess : failed(cudaErrorMemoryAllocation);
}

cudaError_t cudaFreeHost(void *pointer) {
  free(pointer);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *unused, size_t *total) {
  size_t taken = memory_of_others() + used[device];
  *total = memory_of_card();
  *unused = taken < *total ? *total - taken : 0;
  return cudaSuccess;
}

/* ------------------------------------------------------------------------------------------------------ copies */

static int is_within_card(enum cudaMemcpyKind kind) { return kind == cudaMemcpyDeviceToDevice; }

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
  if (!is_within_card(kind) || bytes <= CARRIED_OUT) memmove(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
  (void)stream;
  return cudaMemcpy(to, from, bytes, kind);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream) {
  (void)stream;
  if (is_within_card(kind) && width * height > CARRIED_OUT) return cudaSuccess;
  for (size_t row = 0; row < height; ++row)
    memmove((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width);
  return cudaSuccess;
}

cudaError_t cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device, size_t bytes,
                                cudaStream_t stream) {
  (void)to_device, (void)from_device, (void)stream;
  return cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToDevice);
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
  (void)stream;
  if (bytes <= CARRIED_OUT) memset(to, value, bytes);
  return cudaSuccess;
}

/* ----------------------------------------------------------------------------------------------------- devices */

cudaError_t cudaGetDeviceCount(int *count) {
  *count = 0;
  if (driver_version() < 11000) return failed(cudaErrorInsufficientDriver);
  if (gpus() == 0) return failed(cudaErrorNoDevice);
  *count = gpus();
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int index) {
  if (index < 0 || index >= gpus() || index >= MOST_GPUS) return failed(cudaErrorInvalidDevice);
  device = index;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int *index) {
  *index = device;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
  *version = driver_version();
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int index) {
  (void)index;
  *found = (struct cudaDeviceProp){
      .name = "fake card of a rehearsal",
      .totalGlobalMem = memory_of_card(),
      .sharedMemPerBlock = 48 << 10,
      .regsPerBlock = 1 << 16,
      .warpSize = 32,
      .maxThreadsPerBlock = 1024,
      .maxThreadsDim = {1024, 1024, 64},
      .maxGridSize = {2147483647, 65535, 65535},
      .major = capability() / 10,
      .minor = capability() % 10,
      .multiProcessorCount = 80,
      .l2CacheSize = 6 << 20,
      .maxThreadsPerMultiProcessor = 2048,
      .sharedMemPerMultiprocessor = 96 << 10,
      .regsPerMultiprocessor = 1 << 16,
  };
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int index) {
  struct cudaDeviceProp card;
  cudaGetDeviceProperties(&card, index);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = card.maxThreadsPerBlock; break;
    case cudaDevAttrMaxBlockDimX: *value = card.maxThreadsDim[0]; break;
    case cudaDevAttrMaxBlockDimY: *value = card.maxThreadsDim[1]; break;
    case cudaDevAttrMaxBlockDimZ: *value = card.maxThreadsDim[2]; break;
    case cudaDevAttrMaxGridDimX: *value = card.maxGridSize[0]; break;
    case cudaDevAttrMaxGridDimY: *value = card.maxGridSize[1]; break;
    case cudaDevAttrMaxGridDimZ: *value = card.maxGridSize[2]; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)card.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)card.sharedMemPerMultiprocessor; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = (int)card.sharedMemPerMultiprocessor; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = card.regsPerBlock; break;
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = card.regsPerMultiprocessor; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = 32; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = card.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMultiProcessorCount: *value = card.multiProcessorCount; break;
    case cudaDevAttrWarpSize: *value = card.warpSize; break;
    case cudaDevAttrComputeCapabilityMajor: *value = card.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = card.minor; break;
    default: *value = 1; /* what the card can do: it can */
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int one, int other) {
  *can = one != other;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetP2PAttribute(int *value, enum cudaDeviceP2PAttr attribute, int one, int other) {
  (void)attribute, (void)one, (void)other;
  *value = 1;
  return cudaSuccess;
}

/* ----------------------------------------------------------------------------------------------------- kernels */

static cudaError_t launch_error(void) { return (cudaError_t)setting("FAKE_CUDA_LAUNCH_ERROR", 0); }

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function) {
  (void)function;
  if (launch_error() != cudaSuccess) return failed(launch_error());
  *found = (struct cudaFuncAttributes){
      .maxThreadsPerBlock = 1024,
      .numRegs = 32,
      .ptxVersion = capability(),
      .binaryVersion = capability(),
      .maxDynamicSharedSizeBytes = 48 << 10,
  };
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks_each, const void *function, int threads,
                                                                   size_t shared, unsigned flags) {
  (void)function, (void)threads, (void)shared, (void)flags;
  *blocks_each = 2;
  return cudaSuccess;
}

static int is_launchable(dim3 grid, dim3 block) {
  unsigned long threads = (unsigned long)block.x * block.y * block.z;
  return grid.x > 0 && grid.x <= 2147483647u && grid.y > 0 && grid.y <= 65535 && grid.z > 0 && grid.z <= 65535 &&
         threads > 0 && threads <= 1024;
}

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared,
                             cudaStream_t stream) {
  (void)function, (void)arguments, (void)shared, (void)stream;
  __sync_fetch_and_add(&launches, 1);
  if (launch_error() != cudaSuccess) return failed(launch_error());
  return is_launchable(grid, block) ? cudaSuccess : failed(cudaErrorInvalidConfiguration);
}

/* What the compiler makes of kernel<<<grid, block>>>(...): the configuration is put aside and taken by the stub. */
static __thread struct {
  dim3 grid, block;
  size_t shared;
  void *stream;
} configuration;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
  configuration.grid = grid, configuration.block = block;
  configuration.shared = shared, configuration.stream = stream;
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = configuration.grid, *block = configuration.block;
  *shared = configuration.shared, *(void **)stream = configuration.stream;
  return cudaSuccess;
}

void **__cudaRegisterFatBinary(void *binary) {
  static void *handle;
  (void)binary;
  return &handle;
}

char __cudaInitModule(void **handle) {
  (void)handle;
  return 1;
}

/* ------------------------------------------------------------------------------------------ streams and errors */

static char something; /* what handles point to */

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
  *stream = (cudaStream_t)&something;
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
  (void)flags;
  *event = (cudaEvent_t)&something;
  return cudaSuccess;
}

cudaError_t cudaGetLastError(void) {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError(void) { return last_error; }

const char *cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorNoKernelImageForDevice: return "cudaErrorNoKernelImageForDevice";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorECCUncorrectable: return "cudaErrorECCUncorrectable";
    default: return "cudaErrorUnknown";
  }
}

/* NVIDIA's texts, by which the program tells errors apart. */
const char *cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorNoKernelImageForDevice: return "no kernel image is available for execution on the device";
    case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
    case cudaErrorECCUncorrectable: return "uncorrectable ECC error encountered";
    default: return "unknown error";
  }
}
