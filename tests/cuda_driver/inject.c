/* The lock, the rules that all calls obey, faults on demand, and the reports. */
#include "driver.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct Fault {
    char name[64];
    long nth, times;
    int code;
} Fault;

enum { FAULTS = 16, CALLS = 4096 };
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t news = PTHREAD_COND_INITIALIZER;
static Fault faults[FAULTS];
static const char *calls[CALLS];
static size_t call_count;
static char reports[1 << 14];
static const char *fault_met = "";
static int sticky_code;
static pid_t initialized_by;

void lock(void) { pthread_mutex_lock(&mutex); }
void unlock(void) { pthread_mutex_unlock(&mutex); }
void wait_for_news(void) { pthread_cond_wait(&news, &mutex); }
void tell_news(void) { pthread_cond_broadcast(&news); }
uint64_t this_thread(void) { return (uint64_t)pthread_self(); }
int sticky(void) { return sticky_code; }

long setting(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value && *value ? atol(value) : otherwise;
}

void report(const char *format, ...) {
    size_t used = strlen(reports);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reports + used, sizeof reports - used, format, arguments);
    va_end(arguments);
    fprintf(stderr, "software CUDA driver: %s\n", reports + used);
    if (setting("EMU_STRICT", 0)) abort(); /* for processes that nobody asks for their reports */
    used = strlen(reports);
    if (used + 1 < sizeof reports) strcpy(reports + used, "\n");
}

void stick(int code) {
    if (!sticky_code) sticky_code = code;
}

/* cudaError_t's documentation: those that leave "the process in an inconsistent state". */
static int is_sticky(int code) { return code == 214 || code == 220 || (code >= 700 && code < 800 && code != 708); }

int injected(const char *name) {
    for (Fault *fault = faults; fault < faults + FAULTS; fault++)
        if (fault->times && (!strcmp(fault->name, name) || !strcmp(fault->name, "*")) && --fault->nth <= 0) {
            fault->times--;
            fault_met = name;
            if (is_sticky(fault->code)) stick(fault->code);
            return fault->code;
        }
    return SUCCESS;
}

int enter(const char *name, int rules) {
    lock();
    if (call_count < CALLS) calls[call_count++] = name;
    if (!initialized_by && !strcmp(name, "cuInit")) initialized_by = getpid();
    if (!(rules & ANY_TIME) && initialized_by != getpid()) {
        /* CUDA does not live on in a child that was forked once it ran. */
        if (initialized_by) report("%s in a child of the process that called cuInit", name);
        return NOT_INITIALIZED;
    }
    if (sticky_code && !(rules & (ANY_TIME | DESPITE_STICKY))) return sticky_code;
    int code = injected(name);
    if (code) return code;
    if (!(rules & (ANY_TIME | NO_CONTEXT))) {
        Context *context = current_context();
        if (!context) {
            report("%s without a current context", name);
            return INVALID_CONTEXT;
        }
        if (!context->alive) return CONTEXT_IS_DESTROYED;
    }
    if (rules & UNSAFE) { /* "an ongoing capture sequence" of "the local thread", mode THREAD_LOCAL */
        Stream *stream = capture_of_this_thread();
        if (stream) {
            stream->invalidated = 1;
            return CAPTURE_UNSUPPORTED;
        }
    }
    return SUCCESS;
}

int leave(int code) {
    unlock();
    return code;
}

/* For tests. */

/* From its `nth` call on, `name`, or "*" for any, gives `code`, `times` times. */
void emu_fail(const char *name, long nth, long times, int code) {
    lock();
    for (Fault *fault = faults; fault < faults + FAULTS; fault++)
        if (!fault->times) {
            snprintf(fault->name, sizeof fault->name, "%s", name);
            fault->nth = nth, fault->times = times, fault->code = code;
            break;
        }
    unlock();
}

/* What a kernel does that reads beyond its memory; for use in a host function. */
void emu_stick(int code) {
    lock();
    stick(code);
    unlock();
}

const char *emu_fault_met(void) { return fault_met; }
int emu_sticky(void) { return sticky_code; }
const char *emu_reports(void) { return reports; }
void emu_forget_calls(void) { call_count = 0; }
size_t emu_call_count(void) { return call_count; }
const char *emu_call(size_t index) { return calls[index]; }

/* A kernel that takes so many milliseconds, and no interpreter lock: for cuLaunchHostFunc. */
void emu_sleep(void *milliseconds) { usleep((useconds_t)((uintptr_t)milliseconds * 1000)); }
