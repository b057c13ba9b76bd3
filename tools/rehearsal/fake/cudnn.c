/* libcudnn without a GPU: descriptors know how large they are where MXNet asks, the rest returns success.
 *
 * Handles and descriptors of cuDNN are pointers to what the caller does not know; its header is in a wheel of 700 MB, and
 * the few types needed here are written down instead.
 */
#include <stddef.h>
#include <stdlib.h>

#include "settings.h"

enum { SUCCESS = 0, ALLOC_FAILED = 2 };
enum { ALGORITHMS = 8, MOST_DIMENSIONS = 8, DROPOUT_STATES = 80 * 2048 * 6 /* bytes */ };

struct descriptor {
  size_t elements;
};

/* cudnnConvolutionFwdAlgoPerf_t, and those of the two backward passes, which have the same fields. */
struct performance {
  int algorithm;
  int status;
  float time;
  size_t memory;
  int determinism;
  int math;
  int reserved[3];
};

static int create(void **made) {
  *made = calloc(1, sizeof(struct descriptor));
  return *made != NULL ? SUCCESS : ALLOC_FAILED;
}

int cudnnCreate(void **handle) {
  int status = (int)setting("FAKE_CUDNN_STATUS", SUCCESS);
  return status != SUCCESS ? status : create(handle);
}

#define CREATES(name) \
  int name(void **made) { return create(made); }
CREATES(cudnnCreateActivationDescriptor)
CREATES(cudnnCreateConvolutionDescriptor)
CREATES(cudnnCreateDropoutDescriptor)
CREATES(cudnnCreateFilterDescriptor)
CREATES(cudnnCreatePoolingDescriptor)
CREATES(cudnnCreateRNNDataDescriptor)
CREATES(cudnnCreateRNNDescriptor)
CREATES(cudnnCreateSpatialTransformerDescriptor)
CREATES(cudnnCreateTensorDescriptor)

#define DESTROYS(name)      \
  int name(void *made) {    \
    free(made);             \
    return SUCCESS;         \
  }
DESTROYS(cudnnDestroy)
DESTROYS(cudnnDestroyActivationDescriptor)
DESTROYS(cudnnDestroyConvolutionDescriptor)
DESTROYS(cudnnDestroyDropoutDescriptor)
DESTROYS(cudnnDestroyFilterDescriptor)
DESTROYS(cudnnDestroyPoolingDescriptor)
DESTROYS(cudnnDestroyRNNDataDescriptor)
DESTROYS(cudnnDestroyRNNDescriptor)
DESTROYS(cudnnDestroySpatialTransformerDescriptor)
DESTROYS(cudnnDestroyTensorDescriptor)

size_t cudnnGetVersion(void) { return (size_t)setting("FAKE_CUDNN_VERSION", 8906); }

const char *cudnnGetErrorString(int status) {
  static const char *const names[] = {
      "CUDNN_STATUS_SUCCESS",        "CUDNN_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_ALLOC_FAILED",
      "CUDNN_STATUS_BAD_PARAM",      "CUDNN_STATUS_INTERNAL_ERROR",  "CUDNN_STATUS_INVALID_VALUE",
      "CUDNN_STATUS_ARCH_MISMATCH",  "CUDNN_STATUS_MAPPING_ERROR",   "CUDNN_STATUS_EXECUTION_FAILED",
      "CUDNN_STATUS_NOT_SUPPORTED",  "CUDNN_STATUS_LICENSE_ERROR",   "CUDNN_STATUS_RUNTIME_PREREQUISITE_MISSING",
      "CUDNN_STATUS_RUNTIME_IN_PROGRESS", "CUDNN_STATUS_RUNTIME_FP_OVERFLOW", "CUDNN_STATUS_VERSION_MISMATCH",
  };
  int known = status >= 0 && status < (int)(sizeof names / sizeof *names);
  return known ? names[status] : "CUDNN_UNKNOWN_STATUS";
}

/* ----------------------------------------------------------------------------------------------------- dropout */

static int set_elements(void *descriptor, int dimensions, const int *sizes) {
  size_t elements = 1;
  for (int i = 0; i < dimensions && i < MOST_DIMENSIONS; ++i) elements *= (size_t)sizes[i];
  ((struct descriptor *)descriptor)->elements = elements;
  return SUCCESS;
}

int cudnnSetTensorNdDescriptor(void *tensor, int type, int dimensions, const int *sizes, const int *strides) {
  (void)type, (void)strides;
  return set_elements(tensor, dimensions, sizes);
}

int cudnnSetTensor4dDescriptor(void *tensor, int format, int type, int n, int c, int h, int w) {
  int sizes[] = {n, c, h, w};
  (void)format, (void)type;
  return set_elements(tensor, 4, sizes);
}

int cudnnDropoutGetStatesSize(void *handle, size_t *bytes) {
  (void)handle;
  *bytes = DROPOUT_STATES;
  return SUCCESS;
}

int cudnnDropoutGetReserveSpaceSize(void *tensor, size_t *bytes) {
  *bytes = (((struct descriptor *)tensor)->elements + 7) / 8;
  return SUCCESS;
}

/* ------------------------------------------------------------------------------------------------ convolutions */

static size_t workspace(void) { return mebibytes("FAKE_CUDNN_WORKSPACE_MB", 0); }

static int one_algorithm(int *returned, struct performance *found) {
  *returned = 1;
  *found = (struct performance){.algorithm = 1, .status = SUCCESS, .memory = workspace(), .determinism = 1};
  return SUCCESS;
}

#define CHOOSES(name)                                                                              \
  int name(void *handle, void *a, void *b, void *c, void *d, int requested, int *returned,         \
           struct performance *found) {                                                            \
    (void)handle, (void)a, (void)b, (void)c, (void)d, (void)requested;                             \
    return one_algorithm(returned, found);                                                         \
  }
CHOOSES(cudnnFindConvolutionForwardAlgorithm)
CHOOSES(cudnnFindConvolutionBackwardDataAlgorithm)
CHOOSES(cudnnFindConvolutionBackwardFilterAlgorithm)
CHOOSES(cudnnGetConvolutionForwardAlgorithm_v7)
CHOOSES(cudnnGetConvolutionBackwardDataAlgorithm_v7)
CHOOSES(cudnnGetConvolutionBackwardFilterAlgorithm_v7)

#define COUNTS(name)                   \
  int name(void *handle, int *count) { \
    (void)handle;                      \
    *count = ALGORITHMS;               \
    return SUCCESS;                    \
  }
COUNTS(cudnnGetConvolutionForwardAlgorithmMaxCount)
COUNTS(cudnnGetConvolutionBackwardDataAlgorithmMaxCount)
COUNTS(cudnnGetConvolutionBackwardFilterAlgorithmMaxCount)

#define MEASURES(name)                                                                     \
  int name(void *handle, void *a, void *b, void *c, void *d, int algorithm, size_t *bytes) { \
    (void)handle, (void)a, (void)b, (void)c, (void)d, (void)algorithm;                     \
    *bytes = workspace();                                                                  \
    return SUCCESS;                                                                        \
  }
MEASURES(cudnnGetConvolutionForwardWorkspaceSize)
MEASURES(cudnnGetConvolutionBackwardDataWorkspaceSize)
MEASURES(cudnnGetConvolutionBackwardFilterWorkspaceSize)
