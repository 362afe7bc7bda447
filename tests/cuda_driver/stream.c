/* Streams whose work runs when somebody waits for it, events, capture into graphs and their replay. */
#include "driver.h"

#include <stdlib.h>
#include <string.h>

enum { STREAMS = 64 };
static Stream *streams[STREAMS]; /* those that exist */
static int executables, executables_made;

void *new_handle(size_t size, int kind) {
    int *handle = calloc(1, size); /* never freed: a handle that is used after its end is told from others */
    *handle = kind;
    return handle;
}

int is_alive(const void *handle, int kind, const char *name) {
    if (handle && *(const int *)handle == kind) return 1;
    report("%s: no such handle", name);
    return 0;
}

void append(List *list, Work work) {
    if (list->count == list->room) {
        list->room = list->room ? 2 * list->room : 8;
        list->items = realloc(list->items, list->room * sizeof *list->items);
    }
    list->items[list->count++] = work;
}

Stream *capture_of_this_thread(void) {
    for (int index = 0; index < STREAMS; index++)
        if (streams[index] && streams[index]->capture && streams[index]->captured_by == this_thread())
            return streams[index];
    return NULL;
}

int submit(Stream *stream, Work work) {
    if (!is_alive(stream, STREAM, "a queued call")) return INVALID_HANDLE;
    if (stream->capture && stream->invalidated) return CAPTURE_INVALIDATED;
    append(stream->capture ? &stream->capture->work : &stream->queue, work);
    return SUCCESS;
}

static void run(Stream *stream, Work work) {
    if (work.kind == RECORD) {
        work.event->passed = work.stamp;
    } else if (work.kind == COPY) {
        void *host = host_address((CUdeviceptr)(work.to_device ? work.to : work.from), work.size);
        if (!host || !is_pinned(work.to_device ? work.from : work.to, work.size)) {
            report("a copy runs after its memory was freed");
            stick(ILLEGAL_ADDRESS);
        } else if (work.to_device) {
            memcpy(host, work.from, work.size);
        } else {
            memcpy(work.to, host, work.size);
        }
    } else {
        int code = injected("kernel");
        if (code) {
            stick(code);
            return;
        }
        stream->running = 1;
        unlock();
        work.function(work.argument);
        lock();
        stream->running = 0;
        tell_news();
    }
}

static void run_next(Stream *stream) {
    Work work = stream->queue.items[0];
    memmove(stream->queue.items, stream->queue.items + 1, --stream->queue.count * sizeof work);
    run(stream, work);
}

/* Run what is queued up to and with record `stamp` of `event`, or all of it. */
static int drain(Stream *stream, const Event *event, uint64_t stamp) {
    while (!sticky() && (stream->running || stream->queue.count)) {
        if (event && event->passed >= stamp) break;
        if (stream->running) {
            wait_for_news();
            continue;
        }
        run_next(stream);
    }
    return sticky();
}

int cuStreamCreate(Stream **stream, unsigned flags) {
    int code = enter("cuStreamCreate", 0);
    if (!code && flags > 1) code = INVALID_VALUE;
    for (int index = 0; !code && index < STREAMS; index++)
        if (!streams[index]) {
            *stream = streams[index] = new_handle(sizeof **stream, STREAM);
            return leave(SUCCESS);
        }
    return leave(code ? code : OUT_OF_MEMORY);
}

int cuStreamDestroy_v2(Stream *stream) {
    int code = enter("cuStreamDestroy", 0);
    if (!code && !is_alive(stream, STREAM, "cuStreamDestroy")) code = INVALID_HANDLE;
    if (!code) {
        code = drain(stream, NULL, 0);
        stream->kind = DEAD;
        for (int index = 0; index < STREAMS; index++)
            if (streams[index] == stream) streams[index] = NULL;
    }
    return leave(code);
}

int cuStreamSynchronize(Stream *stream) {
    int code = enter("cuStreamSynchronize", 0);
    if (!code && !is_alive(stream, STREAM, "cuStreamSynchronize")) code = INVALID_HANDLE;
    if (!code && stream->capture) {
        stream->invalidated = 1;
        code = CAPTURE_UNSUPPORTED;
    }
    return leave(code ? code : drain(stream, NULL, 0));
}

/* "It is also invalid to ... synchronize a broader handle which encompasses stream capture, such as a device or context
 * handle when any associated stream is in capture mode." */
int cuCtxSynchronize(void) {
    int code = enter("cuCtxSynchronize", UNSAFE);
    for (int index = 0; !code && index < STREAMS; index++)
        if (streams[index] && streams[index]->capture) {
            report("cuCtxSynchronize while a stream captures");
            streams[index]->invalidated = 1;
            code = CAPTURE_UNSUPPORTED;
        }
    for (int index = 0; !code && index < STREAMS; index++)
        if (streams[index]) code = drain(streams[index], NULL, 0);
    return leave(code);
}

/* The kernels of these tests. */
int cuLaunchHostFunc(Stream *stream, CUhostFn function, void *argument) {
    int code = enter("cuLaunchHostFunc", 0);
    Work work = {.kind = HOST_FUNCTION, .function = function, .argument = argument};
    return leave(code ? code : submit(stream, work));
}

/* Events */

int cuEventCreate(Event **event, unsigned flags) {
    int code = enter("cuEventCreate", 0);
    if (!code && flags > 7) code = INVALID_VALUE;
    if (!code) *event = new_handle(sizeof **event, EVENT);
    return leave(code);
}

int cuEventDestroy_v2(Event *event) {
    int code = enter("cuEventDestroy", 0);
    if (!code && !is_alive(event, EVENT, "cuEventDestroy")) code = INVALID_HANDLE;
    if (!code) event->kind = DEAD;
    return leave(code);
}

int cuEventRecord(Event *event, Stream *stream) {
    int code = enter("cuEventRecord", 0);
    if (!code && (!is_alive(event, EVENT, "cuEventRecord") || !is_alive(stream, STREAM, "cuEventRecord")))
        code = INVALID_HANDLE;
    if (code) return leave(code);
    event->stream = stream;
    Work work = {.kind = RECORD, .event = event, .stamp = ++event->recorded};
    return leave(submit(stream, work));
}

int cuEventSynchronize(Event *event) {
    int code = enter("cuEventSynchronize", 0);
    if (!code && !is_alive(event, EVENT, "cuEventSynchronize")) code = INVALID_HANDLE;
    if (!code && event->stream) code = drain(event->stream, event, event->recorded);
    return leave(code);
}

int cuEventQuery(Event *event) {
    int code = enter("cuEventQuery", 0);
    if (!code && !is_alive(event, EVENT, "cuEventQuery")) code = INVALID_HANDLE;
    if (!code && event->passed < event->recorded) {
        if (!event->stream->running && event->stream->queue.count) run_next(event->stream); /* time passes */
        code = sticky() ? sticky() : NOT_READY;
    }
    return leave(code);
}

/* Capture: "Creating a Graph Using Stream Capture" of the programming guide. */

int cuStreamBeginCapture_v2(Stream *stream, int mode) {
    int code = enter("cuStreamBeginCapture", 0);
    if (!code && !is_alive(stream, STREAM, "cuStreamBeginCapture")) code = INVALID_HANDLE;
    if (!code && mode != 1) report("cuStreamBeginCapture: this driver knows THREAD_LOCAL only");
    if (!code && stream->capture) code = ILLEGAL_STATE;
    if (!code) {
        stream->capture = new_handle(sizeof *stream->capture, GRAPH);
        stream->invalidated = 0;
        stream->captured_by = this_thread();
    }
    return leave(code);
}

/* Of a capture that was invalidated: takes the stream out of capture mode, "but will also return an error value and a
 * NULL graph". */
int cuStreamEndCapture(Stream *stream, Graph **graph) {
    int code = enter("cuStreamEndCapture", 0);
    *graph = NULL;
    if (!code && !is_alive(stream, STREAM, "cuStreamEndCapture")) code = INVALID_HANDLE;
    if (!code && !stream->capture) code = ILLEGAL_STATE;
    if (!code && stream->captured_by != this_thread()) return leave(CAPTURE_WRONG_THREAD);
    if (code) return leave(code);
    if (stream->invalidated)
        code = CAPTURE_INVALIDATED;
    else
        *graph = stream->capture;
    stream->capture = NULL;
    return leave(code);
}

int cuStreamIsCapturing(Stream *stream, int *status) {
    int code = enter("cuStreamIsCapturing", ANY_TIME);
    *status = !is_alive(stream, STREAM, "cuStreamIsCapturing") || !stream->capture ? 0 : stream->invalidated ? 2 : 1;
    return leave(code);
}

int cuGraphInstantiateWithFlags(Graph **executable, Graph *graph, uint64_t flags) {
    int code = enter("cuGraphInstantiateWithFlags", 0);
    if (!code && !is_alive(graph, GRAPH, "cuGraphInstantiateWithFlags")) code = INVALID_VALUE;
    if (!code && flags) code = INVALID_VALUE;
    if (!code) {
        *executable = new_handle(sizeof **executable, EXEC);
        executables++, executables_made++;
        for (size_t index = 0; index < graph->work.count; index++) append(&(*executable)->work, graph->work.items[index]);
    }
    return leave(code);
}

static int destroy(Graph *graph, int kind, const char *name) {
    int code = enter(name, NO_CONTEXT);
    if (!code && !is_alive(graph, kind, name)) code = INVALID_VALUE;
    if (!code) graph->kind = DEAD;
    if (!code && kind == EXEC) executables--;
    return leave(code);
}

int cuGraphDestroy(Graph *graph) { return destroy(graph, GRAPH, "cuGraphDestroy"); }
int cuGraphExecDestroy(Graph *graph) { return destroy(graph, EXEC, "cuGraphExecDestroy"); }

int cuGraphUpload(Graph *executable, Stream *stream) {
    int code = enter("cuGraphUpload", 0);
    if (!code && (!is_alive(executable, EXEC, "cuGraphUpload") || !is_alive(stream, STREAM, "cuGraphUpload")))
        code = INVALID_VALUE;
    return leave(code);
}

int cuGraphLaunch(Graph *executable, Stream *stream) {
    int code = enter("cuGraphLaunch", 0);
    if (!code && (!is_alive(executable, EXEC, "cuGraphLaunch") || !is_alive(stream, STREAM, "cuGraphLaunch")))
        code = INVALID_VALUE;
    for (size_t index = 0; !code && index < executable->work.count; index++)
        code = submit(stream, executable->work.items[index]);
    return leave(code);
}

/* For tests. */

/* A call within a library that a capture does not survive. */
void emu_invalidate(Stream *stream) {
    lock();
    stream->invalidated = 1;
    unlock();
}

int emu_capturing(void) {
    int count = 0;
    lock();
    for (int index = 0; index < STREAMS; index++) count += streams[index] && streams[index]->capture;
    unlock();
    return count;
}

int emu_executables(int alive) { return alive ? executables : executables_made; }
