/* What the files of this software driver share. The public functions are those of NVIDIA's cuda.h, whose documentation
 * (CUDA Driver API, release 11.8) they follow; a comment names the section where one is relied on.
 *
 * No GPU: device memory is host memory, kernels are host functions (cuLaunchHostFunc), and a stream's work waits until
 * somebody waits for it. Every public function takes the one lock, and lets it go only while a host function runs.
 */
#ifndef DRIVER_H
#define DRIVER_H

#include <stddef.h>
#include <stdint.h>

typedef int CUdevice;
typedef uint64_t CUdeviceptr;
typedef void (*CUhostFn)(void *);

enum { /* CUresult: "Data types used by CUDA driver" */
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201, INVALID_HANDLE = 400, ILLEGAL_STATE = 401, NOT_FOUND = 500, NOT_READY = 600,
    ILLEGAL_ADDRESS = 700, CONTEXT_IS_DESTROYED = 709, LAUNCH_FAILED = 719, NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CAPTURE_UNMATCHED = 903, CAPTURE_WRONG_THREAD = 908,
    UNKNOWN = 999
};

typedef struct Context {
    int alive, retained;
} Context;

typedef struct Work {
    enum { COPY, HOST_FUNCTION, RECORD } kind;
    void *to, *from; /* COPY: one is a host address, the other a CUdeviceptr */
    int to_device;
    size_t size;
    CUhostFn function;
    void *argument;
    struct Event *event;
    uint64_t stamp; /* RECORD: which of the event's records this is */
} Work;

typedef struct List {
    Work *items;
    size_t count, room;
} List;

enum { STREAM = 0x53545245, EVENT = 0x45564e54, GRAPH = 0x47525048, EXEC = 0x45584543, DEAD = 0x44454144 };

typedef struct Event {
    int kind;
    uint64_t recorded, passed;
    struct Stream *stream; /* that it was last recorded in */
} Event;

typedef struct Graph {
    int kind;
    List work;
} Graph;

typedef struct Stream {
    int kind;
    List queue;
    int running; /* a host function of it, in some thread */
    Graph *capture;
    int invalidated;
    uint64_t captured_by; /* thread */
} Stream;

/* inject.c: every public function begins with `enter` and ends with `leave`. */
enum { ANY_TIME = 1, NO_CONTEXT = 2, DESPITE_STICKY = 4, UNSAFE = 8 };
/* Takes the lock; the error that the call must end with, or SUCCESS.
 * UNSAFE: "potentially unsafe API calls" of cuThreadExchangeStreamCaptureMode. */
int enter(const char *name, int rules);
int leave(int code);
void wait_for_news(void);
void tell_news(void);
void unlock(void);
void lock(void);
/* A fault that a test asked for: `name` is a public function, or "kernel". */
int injected(const char *name);
/* An error after which the context answers every call with it. */
void stick(int code);
int sticky(void);
/* Note what no correct program does; tests look for it. */
void report(const char *format, ...) __attribute__((format(printf, 1, 2)));
long setting(const char *name, long otherwise);
uint64_t this_thread(void);

/* context.c */
Context *current_context(void);

/* memory.c */
/* The host's address of `size` bytes of device memory, or NULL where they are not within one allocation. */
void *host_address(CUdeviceptr address, size_t size);
int is_pinned(const void *address, size_t size);
void free_all_memory(void);

/* stream.c */
Stream *capture_of_this_thread(void);
void append(List *list, Work work);
int submit(Stream *stream, Work work);
int is_alive(const void *handle, int kind, const char *name);
void *new_handle(size_t size, int kind);

#endif
