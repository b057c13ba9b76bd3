/* libcuda, the library of NVIDIA's driver, without a GPU: what MXNet and the program ask of it. */
#include <cuda.h>
#include <string.h>

#include "settings.h"

static char something; /* what handles point to */

CUresult cuInit(unsigned flags) {
  (void)flags;
  return gpus() > 0 ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

CUresult cuDriverGetVersion(int *version) {
  *version = driver_version();
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count) {
  *count = gpus();
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int index) {
  *device = index;
  return index >= 0 && index < gpus() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
  (void)device;
  strncpy(name, "fake card of a rehearsal", (size_t)length);
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  (void)device;
  *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR   ? capability() / 10
           : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR ? capability() % 10
                                                                       : 1;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  (void)device;
  *context = (CUcontext)&something;
  return CUDA_SUCCESS;
}

/* Code that NVRTC has compiled: the compiler is the real one, which needs no GPU. */
CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  (void)image;
  *module = (CUmodule)&something;
  return (CUresult)setting("FAKE_CUDA_LOAD_ERROR", 0);
}

CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned options, CUjit_option *names, void **values) {
  (void)options, (void)names, (void)values;
  return cuModuleLoadData(module, image);
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  (void)module, (void)name;
  *function = (CUfunction)&something;
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = error == CUDA_ERROR_UNSUPPORTED_PTX_VERSION ? "the provided PTX was compiled with an unsupported toolchain."
                                                      : "unknown error";
  return CUDA_SUCCESS;
}
