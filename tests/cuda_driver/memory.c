/* Device and page-locked memory: a registry, guards behind every block, and copies that are checked against both.
 *
 * A device address is the host's plus a distance that no process has mapped: who reads it on the host crashes, as with a
 * GPU. Page-locked memory is unmapped when freed, with the same effect.
 */
#define _GNU_SOURCE
#include "driver.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGNMENT = 512, GUARD = 512, GUARD_BYTE = 0xFD, NEW_BYTE = 0xAB, PINNED_BYTE = 0xCD };
static const uint64_t DISTANCE = 1ull << 48;

typedef struct Block {
    unsigned char *host;
    size_t size, mapped;
    int pinned;
    struct Block *next;
} Block;

static Block *blocks;
static size_t device_bytes;

static size_t whole(size_t size) { return (size + 4095) / 4096 * 4096; }

static Block *block_with(const void *host, size_t size, int pinned) {
    const unsigned char *first = host;
    for (Block *block = blocks; block; block = block->next)
        if (block->pinned == pinned && first >= block->host && first + size <= block->host + block->size) return block;
    return NULL;
}

void *host_address(CUdeviceptr address, size_t size) {
    void *host = (void *)(address - DISTANCE);
    return address >= DISTANCE && block_with(host, size, 0) ? host : NULL;
}

int is_pinned(const void *address, size_t size) { return block_with(address, size, 1) != NULL; }

static int has_guard(const Block *block) {
    for (size_t index = 0; index < GUARD; index++)
        if (block->host[block->size + index] != GUARD_BYTE) return 0;
    return 1;
}

static int allocate(void **host, size_t size, int pinned) {
    if (!size) return INVALID_VALUE; /* cuMemAlloc: "If bytesize is 0, ... returns CUDA_ERROR_INVALID_VALUE" */
    if (!pinned && device_bytes + size > (size_t)setting("EMU_MEMORY", 1 << 30)) return OUT_OF_MEMORY;
    Block *block = malloc(sizeof *block);
    block->size = size, block->pinned = pinned, block->mapped = whole(size + GUARD);
    block->host = mmap(NULL, block->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block->host == MAP_FAILED) {
        free(block);
        return OUT_OF_MEMORY;
    }
    memset(block->host, pinned ? PINNED_BYTE : NEW_BYTE, size); /* not zero: who reads what was never written sees it */
    memset(block->host + size, GUARD_BYTE, GUARD);
    block->next = blocks, blocks = block;
    if (!pinned) device_bytes += size;
    *host = block->host;
    return SUCCESS;
}

static int release(void *host, int pinned, const char *name) {
    for (Block **link = &blocks; *link; link = &(*link)->next) {
        Block *block = *link;
        if (block->host != host || block->pinned != pinned) continue;
        if (!has_guard(block)) report("%s: something wrote behind the %zu bytes", name, block->size);
        if (!pinned) device_bytes -= block->size;
        *link = block->next;
        munmap(block->host, block->mapped);
        free(block);
        return SUCCESS;
    }
    report("%s of an address that is not allocated", name);
    return INVALID_VALUE;
}

void free_all_memory(void) {
    while (blocks) release(blocks->host, blocks->pinned, "the end of the context");
}


int cuMemAlloc_v2(CUdeviceptr *address, size_t size) {
    void *host = NULL;
    int code = enter("cuMemAlloc", UNSAFE);
    if (!code) code = allocate(&host, size, 0);
    if (!code) *address = (CUdeviceptr)host + DISTANCE;
    return leave(code);
}

int cuMemFree_v2(CUdeviceptr address) {
    int code = enter("cuMemFree", UNSAFE);
    if (!code) code = release((void *)(address - DISTANCE), 0, "cuMemFree");
    return leave(code);
}

int cuMemHostAlloc(void **host, size_t size, unsigned flags) {
    (void)flags;
    int code = enter("cuMemHostAlloc", UNSAFE);
    if (!code) code = allocate(host, size, 1);
    return leave(code);
}

int cuMemFreeHost(void *host) {
    int code = enter("cuMemFreeHost", UNSAFE);
    if (!code) code = release(host, 1, "cuMemFreeHost");
    return leave(code);
}

int cuMemGetInfo_v2(size_t *left, size_t *total) {
    int code = enter("cuMemGetInfo", 0);
    *total = (size_t)setting("EMU_MEMORY", 1 << 30);
    *left = *total - device_bytes;
    return leave(code);
}

/* An address that is none is refused at once; one that is freed before the copy runs is an illegal access then. */
static int copy(const char *name, Stream *stream, void *to, void *from, size_t size, int to_device) {
    int code = enter(name, 0);
    if (code) return leave(code);
    if (!host_address((CUdeviceptr)(to_device ? to : from), size)) {
        report("%s: %zu bytes that are not within one allocation", name, size);
        return leave(INVALID_VALUE);
    }
    /* "API synchronization behavior": with pageable memory an asynchronous copy may wait. */
    if (!is_pinned(to_device ? from : to, size)) report("%s: the host's memory is not page-locked", name);
    Work work = {.kind = COPY, .to = to, .from = from, .size = size, .to_device = to_device};
    return leave(submit(stream, work));
}

int cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t size, Stream *stream) {
    return copy("cuMemcpyHtoDAsync", stream, (void *)to, (void *)from, size, 1);
}

int cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t size, Stream *stream) {
    return copy("cuMemcpyDtoHAsync", stream, to, (void *)from, size, 0);
}

/* For tests: what a kernel sees of device memory. An access beyond an allocation breaks the context. */
void *emu_at(CUdeviceptr address, size_t size) {
    lock();
    void *host = host_address(address, size);
    if (!host) stick(ILLEGAL_ADDRESS);
    unlock();
    return host;
}

/* How many allocations there are, on the device or page-locked; reports those that something wrote behind. */
int emu_allocated(int pinned) {
    int count = 0;
    lock();
    for (Block *block = blocks; block; block = block->next) {
        if (!has_guard(block)) report("something wrote behind %zu bytes", block->size);
        count += block->pinned == pinned;
    }
    unlock();
    return count;
}
