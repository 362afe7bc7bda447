/* Initialisation, the device, its primary context, each thread's stack of contexts, and the table of entry points. */
#define _GNU_SOURCE
#include "driver.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH = 64 };
static Context primary;
static _Thread_local Context *stack[DEPTH];
static _Thread_local int depth;

Context *current_context(void) { return depth ? stack[depth - 1] : NULL; }

static const struct {
    int code;
    const char *name, *text; /* texts as the driver's */
} errors[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "operation not permitted on stream of another thread's capture"},
    {914, "CUDA_ERROR_INVALID_RESOURCE_TYPE", "an error that came after CUDA 11.8"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

/* "If the error code is not recognized, CUDA_ERROR_INVALID_VALUE will be returned and *pStr will be set to the NULL
 * address." */
static int error_text(int code, const char **text, int full) {
    for (size_t index = 0; index < sizeof errors / sizeof *errors; index++)
        if (errors[index].code == code) {
            *text = full ? errors[index].text : errors[index].name;
            return SUCCESS;
        }
    *text = NULL;
    return INVALID_VALUE;
}

int cuGetErrorName(int code, const char **text) { return error_text(code, text, 0); }
int cuGetErrorString(int code, const char **text) { return error_text(code, text, 1); }

int cuInit(unsigned flags) {
    int code = enter("cuInit", NO_CONTEXT);
    if (!code && flags) code = INVALID_VALUE;
    return leave(code ? code : (int)setting("EMU_INIT", SUCCESS));
}

int cuDriverGetVersion(int *version) {
    *version = (int)setting("EMU_VERSION", 12040);
    return SUCCESS;
}

int cuDeviceGetCount(int *count) {
    int code = enter("cuDeviceGetCount", NO_CONTEXT);
    *count = 1;
    return leave(code);
}

int cuDeviceGet(CUdevice *device, int ordinal) {
    int code = enter("cuDeviceGet", NO_CONTEXT);
    *device = ordinal;
    return leave(code ? code : ordinal == 0 ? SUCCESS : INVALID_DEVICE);
}

int cuDeviceGetName(char *name, int length, CUdevice device) {
    (void)device;
    int code = enter("cuDeviceGetName", NO_CONTEXT);
    snprintf(name, (size_t)length, "NVIDIA L4");
    return leave(code);
}

int cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    (void)device;
    int code = enter("cuDeviceGetAttribute", NO_CONTEXT);
    *value = attribute == 75 ? 8 : attribute == 76 ? 9 : 0; /* ..._COMPUTE_CAPABILITY_MAJOR, _MINOR */
    return leave(code);
}

int cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    (void)device;
    *bytes = (size_t)setting("EMU_MEMORY", 1 << 30);
    return SUCCESS;
}

/* "Retains the primary context on the device. ... The new context is not pushed onto the stack." */
int cuDevicePrimaryCtxRetain(Context **context, CUdevice device) {
    int code = enter("cuDevicePrimaryCtxRetain", NO_CONTEXT | DESPITE_STICKY);
    if (!code && device) code = INVALID_DEVICE;
    if (!code) {
        primary.alive = 1;
        primary.retained++;
        *context = &primary;
    }
    return leave(code);
}

/* "Releasing the primary context ... will destroy" it when nobody retains it. "Unlike cuCtxDestroy() this does not pop
 * the context from stack in any circumstances." */
int cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    (void)device;
    int code = enter("cuDevicePrimaryCtxRelease", NO_CONTEXT | DESPITE_STICKY);
    if (!code && !primary.retained) code = INVALID_CONTEXT;
    if (!code && --primary.retained == 0) {
        primary.alive = 0;
        free_all_memory();
    }
    return leave(code);
}

/* With EMU_STICKY_STACK=1 a broken context answers these with its error: "this function may also return error codes from
 * previous, asynchronous launches". */
static int stack_rules(void) { return NO_CONTEXT | (setting("EMU_STICKY_STACK", 0) ? 0 : DESPITE_STICKY); }

int cuCtxPushCurrent_v2(Context *context) {
    int code = enter("cuCtxPushCurrent", stack_rules());
    if (!code && (context != &primary || !context->alive || depth == DEPTH)) code = INVALID_CONTEXT;
    if (!code) stack[depth++] = context;
    return leave(code);
}

int cuCtxPopCurrent_v2(Context **context) {
    int code = enter("cuCtxPopCurrent", stack_rules());
    if (!code && !depth) {
        report("cuCtxPopCurrent from an empty stack");
        code = INVALID_CONTEXT;
    }
    if (!code) {
        *context = stack[--depth];
        stack[depth] = NULL;
    }
    return leave(code);
}

int cuCtxGetCurrent(Context **context) {
    *context = current_context();
    return SUCCESS;
}

int cuCtxGetDevice(CUdevice *device) {
    int code = enter("cuCtxGetDevice", 0);
    *device = 0;
    return leave(code);
}

/* Of the primary context: deprecated calls that must not be used on it, "CUDA_ERROR_INVALID_CONTEXT". */
int cuCtxDetach(Context *context) {
    (void)context;
    int code = enter("cuCtxDetach", NO_CONTEXT | DESPITE_STICKY);
    report("cuCtxDetach of the primary context");
    return leave(code ? code : INVALID_CONTEXT);
}

/* The newest version of `symbol` that this library has; cuda-python 11.8 asks for every function of CUDA 11.8 so.
 * EMU_HIDDEN names one that an old driver lacks. */
int cuGetProcAddress(const char *symbol, void **function, int version, uint64_t flags) {
    (void)version, (void)flags;
    static const char *const suffixes[] = {"_v3", "_v2", ""};
    const char *hidden = getenv("EMU_HIDDEN");
    char name[128];
    Dl_info own;
    *function = NULL;
    if (hidden && !strcmp(hidden, symbol)) return NOT_FOUND;
    dladdr((void *)cuGetProcAddress, &own);
    void *library = dlopen(own.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    for (size_t index = 0; index < 3 && library && !*function; index++) {
        snprintf(name, sizeof name, "%s%s", symbol, suffixes[index]);
        *function = dlsym(library, name);
    }
    if (library) dlclose(library);
    return *function ? SUCCESS : NOT_FOUND;
}

int emu_depth(void) { return depth; }
int emu_retained(void) { return primary.retained; }
