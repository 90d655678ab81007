/* Every function of the CUDA driver that Triton calls, doing nothing and succeeding: a GPU of compute capability 9.0
   with 132 multiprocessors, as far as a host can tell that never looks at a result. Compiled by stand_in_driver.py.

   Arguments are left out: the caller passes them in registers and on its own stack, and cleans up behind itself. */

#include <string.h>

#define SUCCESS 0
#define NOTHING(name)                                                          \
  int name() { return SUCCESS; }

enum { MAX_THREADS_PER_BLOCK = 0 };
enum { WARP_SIZE = 10, MULTIPROCESSORS = 16, SHARED_PER_MULTIPROCESSOR = 81, SHARED_PER_BLOCK = 97 };

static char handle[64];

int cuDeviceGetAttribute(int *value, int attribute) {
  *value = attribute == MULTIPROCESSORS             ? 132
           : attribute == WARP_SIZE                 ? 32
           : attribute == SHARED_PER_BLOCK          ? 227 * 1024
           : attribute == SHARED_PER_MULTIPROCESSOR ? 228 * 1024
                                                    : 1024;
  return SUCCESS;
}
int cuFuncGetAttribute(int *value, int attribute) {
  *value = attribute == MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return SUCCESS;
}
int cuPointerGetAttribute(unsigned long long *value, int attribute, unsigned long long pointer) {
  *value = pointer;
  return SUCCESS;
}
int cuGetErrorString(int code, const char **text) {
  *text = "the stand-in for the driver knows no errors";
  return SUCCESS;
}
int cuTensorMapEncodeTiled(void *map) {
  memset(map, 0, 128);
  return SUCCESS;
}
int cuDeviceGetCount(int *count) { *count = 1; return SUCCESS; }
int cuDeviceGet(int *device) { *device = 0; return SUCCESS; }
int cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cuCtxGetDevice(int *device) { *device = 0; return SUCCESS; }
int cuStreamIsCapturing(void *stream, int *status) { *status = 0; return SUCCESS; }
int cuCtxGetCurrent(void **context) { *context = handle; return SUCCESS; }
int cuDevicePrimaryCtxRetain(void **context) { *context = handle; return SUCCESS; }
int cuModuleLoadData(void **module) { *module = handle; return SUCCESS; }
int cuModuleGetFunction(void **function) { *function = handle; return SUCCESS; }

NOTHING(cuInit)
NOTHING(cuCtxSetCurrent)
NOTHING(cuCtxGetLimit)
NOTHING(cuCtxSetLimit)
NOTHING(cuFuncSetAttribute)
NOTHING(cuFuncSetCacheConfig)
NOTHING(cuModuleUnload)
NOTHING(cuOccupancyMaxActiveClusters)
NOTHING(cuTensorMapEncodeIm2col)
NOTHING(cuLaunchKernelEx)
