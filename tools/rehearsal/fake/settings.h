/* What the card is that the fake libraries show: settings in the environment, read when they are needed.
 *
 * FAKE_CUDA_GPUS           number of GPUs (1)
 * FAKE_CUDA_MEMORY_MB      memory of each in MiB (24576)
 * FAKE_CUDA_CONTEXT_MB     what the CUDA context takes of it (450)
 * FAKE_CUDA_TAKEN_MB       what other programs take of it (0)
 * FAKE_CUDA_CAPABILITY     compute capability, 86 for 8.6 (86)
 * FAKE_CUDA_DRIVER         newest CUDA of the driver, 12040 for 12.4 (12040)
 * FAKE_CUDA_LAUNCH_ERROR   what every launch of a kernel fails with, a cudaError_t (0: none)
 * FAKE_CUDA_LOAD_ERROR     what loading compiled code fails with, a CUresult (0: none)
 * FAKE_CUDNN_VERSION       version of cuDNN (8906)
 * FAKE_CUDNN_STATUS        what creating a handle of cuDNN fails with, a cudnnStatus_t (0: none)
 * FAKE_CUDNN_WORKSPACE_MB  workspace that every convolution asks for (0)
 */
#ifndef FAKE_SETTINGS_H
#define FAKE_SETTINGS_H

#include <stdlib.h>

static inline long setting(const char *name, long otherwise) {
  const char *text = getenv(name);
  return text != NULL && *text != '\0' ? strtol(text, NULL, 10) : otherwise;
}

static inline int gpus(void) { return (int)setting("FAKE_CUDA_GPUS", 1); }
static inline int capability(void) { return (int)setting("FAKE_CUDA_CAPABILITY", 86); }
static inline int driver_version(void) { return (int)setting("FAKE_CUDA_DRIVER", 12040); }

static inline size_t mebibytes(const char *name, long otherwise) { return (size_t)setting(name, otherwise) << 20; }
static inline size_t memory_of_card(void) { return mebibytes("FAKE_CUDA_MEMORY_MB", 24576); }
static inline size_t memory_of_others(void) {
  return mebibytes("FAKE_CUDA_CONTEXT_MB", 450) + mebibytes("FAKE_CUDA_TAKEN_MB", 0);
}

#endif
