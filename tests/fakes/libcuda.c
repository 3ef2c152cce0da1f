/* A CUDA driver and an NVRTC without a GPU, for the tests of everything that calls them.
 *
 * Two GPUs whose memory is the host's. Calls are checked as the real driver checks them: a context
 * must be current, handles must be alive, copies must stay within allocations. Work is done at
 * once, unless its stream is recording; a graph then replays it. One kernel exists,
 * fill(uint8_t *target, int value, size_t count), which shows that launches pass their arguments.
 *
 * Built by fake_driver.py with: cc -shared -fPIC
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500,
    CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, STREAM_UNMATCHED = 904
};
enum { MEMORY = 1, PINNED, STREAM, EVENT, GRAPH, EXEC, MODULE, KINDS };
enum { DEVICES = 2, STACK = 16, RECORDED = 32 };

typedef struct Work {
    void (*run)(struct Work *);
    void *target;
    const void *source;
    size_t size;
    int value;
} Work;

typedef struct Thing {
    struct Thing *next;
    int kind, device, capturing;
    size_t size;
    char *memory;
    int works;
    Work work[RECORDED];
} Thing;

typedef struct { int device, references; } Context;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Thing *things;
static Context primary[DEVICES] = {{0, 0}, {1, 0}};
static __thread Context *stack[STACK];
static __thread int depth;
static int started, failing_code;
static char failing[64];
static int elsewhere; /* a thread of nobody's here records in global mode: 1, spoilt: 2 */
static __thread int mode;
static long limit = 1L << 30;

/* --- for the tests */

void fake_fail(const char *name, int code) {
    snprintf(failing, sizeof failing, "%s", name);
    failing_code = code;
}
int fake_depth(void) { return depth; }
int fake_mode(void) { return mode; }
void fake_capture_elsewhere(int state) { elsewhere = state; }
int fake_captured_elsewhere(void) { return elsewhere; }
int fake_references(int device) { return primary[device].references; }
int fake_live(int kind) {
    int count = 0;
    pthread_mutex_lock(&lock);
    for (Thing *t = things; t; t = t->next) count += t->kind == kind;
    pthread_mutex_unlock(&lock);
    return count;
}

/* --- what every call goes through */

static int told_to_fail(const char *name) {
    return failing_code && !strcmp(failing, name) ? failing_code : OK;
}
static int here(void) {
    if (!started) return NOT_INITIALIZED;
    return depth && stack[depth - 1] && stack[depth - 1]->references ? OK : INVALID_CONTEXT;
}
#define BEGIN                                              \
    do {                                                   \
        int code_ = told_to_fail(__func__);                \
        if (!code_) code_ = here();                        \
        if (code_) return code_;                           \
    } while (0)

/* As BEGIN, for what a thread may not do while another one records in global mode. */
#define BEGIN_UNSAFE                                       \
    do {                                                   \
        BEGIN;                                             \
        if (elsewhere && mode == 0) {                      \
            elsewhere = 2;                                 \
            return CAPTURE_UNSUPPORTED;                    \
        }                                                  \
    } while (0)

static Thing *make(int kind, size_t size) {
    Thing *t = calloc(1, sizeof *t);
    t->kind = kind;
    t->size = size;
    t->device = stack[depth - 1]->device;
    if (size && posix_memalign((void **)&t->memory, 512, size)) abort();
    pthread_mutex_lock(&lock);
    t->next = things;
    things = t;
    pthread_mutex_unlock(&lock);
    return t;
}
static Thing *find(int kind, const void *handle) {
    Thing *found = NULL;
    pthread_mutex_lock(&lock);
    for (Thing *t = things; t && !found; t = t->next)
        if (t->kind == kind && (t == handle || (t->memory && t->memory == handle))) found = t;
    pthread_mutex_unlock(&lock);
    return found;
}
static Thing *holding(int kind, const void *address, size_t size) {
    Thing *found = NULL;
    const char *p = address;
    pthread_mutex_lock(&lock);
    for (Thing *t = things; t && !found; t = t->next)
        if (t->kind == kind && t->memory <= p && p + size <= t->memory + t->size) found = t;
    pthread_mutex_unlock(&lock);
    return found;
}
static int drop(int kind, void *handle) {
    Thing *t = find(kind, handle);
    if (!t || !handle) return INVALID_HANDLE;
    pthread_mutex_lock(&lock);
    for (Thing **at = &things; *at; at = &(*at)->next)
        if (*at == t) { *at = t->next; break; }
    pthread_mutex_unlock(&lock);
    free(t->memory);
    free(t);
    return OK;
}
static int queue(void *stream, Work work) {
    Thing *s = find(STREAM, stream);
    if (!s && stream) return INVALID_HANDLE;
    if (!s || !s->capturing) { work.run(&work); return OK; }
    if (s->works == RECORDED) abort();
    s->work[s->works++] = work;
    return OK;
}
static void move(Work *w) { memcpy(w->target, w->source, w->size); }
static void fill(Work *w) { memset(w->target, w->value, w->size); }
static void nothing(Work *w) { (void)w; }

/* --- start, devices, contexts */

/* How cuda.core finds the driver's functions: by the name in cuda.h, the newest version first. */
int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status) {
    static const char *const suffixes[] = {"_v3", "_v2", ""};
    char versioned[128];
    (void)version;
    (void)flags;
    *function = NULL;
    for (int i = 0; i < 3 && !*function; i++) {
        snprintf(versioned, sizeof versioned, "%s%s", name, suffixes[i]);
        *function = dlsym(RTLD_DEFAULT, versioned);
    }
    if (getenv("FAKE_CUDA_TRACE") && !*function) fprintf(stderr, "no %s\n", name);
    if (status) *status = *function ? 0 : 1;
    return *function ? OK : NOT_FOUND;
}

int cuInit(unsigned flags) {
    int code = told_to_fail(__func__);
    if (!code) started = 1;
    return flags ? INVALID_VALUE : code;
}
int cuDriverGetVersion(int *version) { *version = 13000; return OK; }
int cuGetErrorName(int code, const char **text) {
    *text = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_FAKE";
    return OK;
}
int cuGetErrorString(int code, const char **text) {
    switch (code) {
        case OUT_OF_MEMORY: *text = "out of memory"; return OK;
        case 100: *text = "no CUDA-capable device is detected"; return OK;
        case INVALID_CONTEXT: *text = "invalid device context"; return OK;
        case INVALID_HANDLE: *text = "invalid resource handle"; return OK;
        case NOT_FOUND: *text = "named symbol not found"; return OK;
        case CAPTURE_UNSUPPORTED:
            *text = "operation not permitted when stream is capturing"; return OK;
        case CAPTURE_INVALIDATED:
            *text = "operation failed due to a previous error during capture"; return OK;
        default: *text = NULL; return INVALID_VALUE;
    }
}
int cuDeviceGetCount(int *count) { *count = DEVICES; return started ? OK : NOT_INITIALIZED; }
int cuDeviceGet(int *device, int ordinal) {
    if (ordinal < 0 || ordinal >= DEVICES) return INVALID_DEVICE;
    *device = ordinal;
    return OK;
}
int cuDeviceGetName(char *name, int size, int device) {
    snprintf(name, size, "NVIDIA Fake GPU %d", device);
    return OK;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 75 ? 9 : attribute == 115; /* sm_90, with memory pools */
    return OK;
}
int cuDeviceComputeCapability(int *major, int *minor, int device) {
    (void)device;
    *major = 9;
    *minor = 0;
    return OK;
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    int code = told_to_fail(__func__);
    if (code) return code;
    if (device < 0 || device >= DEVICES) return INVALID_DEVICE;
    primary[device].references++;
    *context = &primary[device];
    return OK;
}
int cuDevicePrimaryCtxRelease_v2(int device) {
    if (!primary[device].references) return INVALID_CONTEXT;
    primary[device].references--;
    return OK;
}
int cuCtxPushCurrent_v2(void *context) {
    if (!context || depth == STACK) return INVALID_VALUE;
    stack[depth++] = context;
    return OK;
}
int cuCtxPopCurrent_v2(void **context) {
    if (!depth) return INVALID_CONTEXT;
    depth--;
    if (context) *context = stack[depth];
    return OK;
}
int cuCtxSetCurrent(void *context) {
    if (depth) depth--;
    if (context) stack[depth++] = context;
    return OK;
}
int cuCtxGetCurrent(void **context) { *context = depth ? stack[depth - 1] : NULL; return OK; }
int cuCtxGetDevice(int *device) {
    if (here()) return INVALID_CONTEXT;
    *device = stack[depth - 1]->device;
    return OK;
}
int cuCtxSynchronize(void) { return here(); }
int cuThreadExchangeStreamCaptureMode(int *value) {
    int before = mode;
    if (*value < 0 || *value > 2) return INVALID_VALUE;
    mode = *value;
    *value = before;
    return OK;
}

/* --- memory */

int cuMemAlloc_v2(void **pointer, size_t size) {
    BEGIN_UNSAFE;
    if (!size) return INVALID_VALUE;
    if ((long)size > limit) return OUT_OF_MEMORY;
    *pointer = make(MEMORY, size)->memory;
    return OK;
}
int cuMemFree_v2(void *pointer) { BEGIN_UNSAFE; return drop(MEMORY, pointer); }
int cuMemHostAlloc(void **pointer, size_t size, unsigned flags) {
    BEGIN;
    (void)flags;
    *pointer = make(PINNED, size)->memory;
    return OK;
}
int cuMemAllocHost_v2(void **pointer, size_t size) {
    BEGIN_UNSAFE;
    *pointer = make(PINNED, size)->memory;
    return OK;
}
int cuMemFreeHost(void *pointer) { BEGIN_UNSAFE; return drop(PINNED, pointer); }
int cuPointerGetAttribute(void *data, int attribute, void *pointer) {
    Thing *device = holding(MEMORY, pointer, 1), *host = holding(PINNED, pointer, 1);
    if (!device && !host) return INVALID_VALUE;
    *(unsigned *)data = attribute == 2 ? (device ? 2 : 1) : (unsigned)(device ? device : host)->device;
    return OK;
}
int cuPointerGetAttributes(unsigned count, int *attributes, void **data, void *pointer) {
    for (unsigned i = 0; i < count; i++) {
        unsigned value = 0;
        cuPointerGetAttribute(&value, attributes[i], pointer);
        *(unsigned *)data[i] = value;
    }
    return OK;
}
int cuMemcpyHtoDAsync_v2(void *target, const void *source, size_t size, void *stream) {
    BEGIN;
    if (!holding(MEMORY, target, size)) return INVALID_VALUE;
    return queue(stream, (Work){move, target, source, size, 0});
}
int cuMemcpyDtoHAsync_v2(void *target, const void *source, size_t size, void *stream) {
    BEGIN;
    if (!holding(MEMORY, source, size)) return INVALID_VALUE;
    return queue(stream, (Work){move, target, source, size, 0});
}

/* The stream-ordered pool of cuda.core; here its order is the order of calls. */
int cuDeviceGetMemPool(void **pool, int device) { *pool = &primary[device]; return OK; }
int cuDeviceGetDefaultMemPool(void **pool, int device) { return cuDeviceGetMemPool(pool, device); }
int cuMemPoolGetAttribute(void *pool, int attribute, void *value) {
    (void)pool;
    (void)attribute;
    *(uint64_t *)value = 0;
    return OK;
}
int cuMemPoolSetAttribute(void *pool, int attribute, void *value) {
    (void)pool;
    (void)attribute;
    (void)value;
    return OK;
}
int cuMemAllocFromPoolAsync(void **pointer, size_t size, void *pool, void *stream) {
    BEGIN;
    if (!pool || !find(STREAM, stream)) return INVALID_HANDLE;
    return cuMemAlloc_v2(pointer, size);
}
int cuMemFreeAsync(void *pointer, void *stream) {
    BEGIN;
    return find(STREAM, stream) ? drop(MEMORY, pointer) : INVALID_HANDLE;
}

/* --- streams, events, graphs */

int cuStreamCreate(void **stream, unsigned flags) {
    BEGIN;
    if (flags != 1) return INVALID_VALUE; /* a blocking stream would wait for the default one */
    *stream = make(STREAM, 0);
    return OK;
}
int cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    *least = *greatest = 0;
    return OK;
}
int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
    (void)priority;
    return cuStreamCreate(stream, flags);
}
int cuStreamDestroy_v2(void *stream) { BEGIN; return drop(STREAM, stream); }
int cuStreamSynchronize(void *stream) {
    BEGIN_UNSAFE;
    Thing *s = find(STREAM, stream);
    if (!s && stream) return INVALID_HANDLE;
    if (s && s->capturing) { s->capturing = 2; return CAPTURE_UNSUPPORTED; }
    return OK;
}
int cuStreamIsCapturing(void *stream, int *status) {
    Thing *s = find(STREAM, stream);
    *status = s ? s->capturing : 0;
    return OK;
}
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
    BEGIN;
    if (flags || !find(EVENT, event)) return INVALID_HANDLE;
    return queue(stream, (Work){nothing, NULL, NULL, 0, 0});
}
int cuStreamBeginCapture_v2(void *stream, int mode) {
    BEGIN;
    Thing *s = find(STREAM, stream);
    if (!s || s->capturing || mode != 1) return STREAM_UNMATCHED;
    s->capturing = 1;
    s->works = 0;
    return OK;
}
int cuStreamEndCapture(void *stream, void **graph) {
    BEGIN;
    Thing *s = find(STREAM, stream);
    if (!s || !s->capturing) return STREAM_UNMATCHED;
    int invalid = s->capturing == 2;
    s->capturing = 0;
    *graph = NULL;
    if (invalid) return CAPTURE_INVALIDATED;
    Thing *g = make(GRAPH, 0);
    memcpy(g->work, s->work, sizeof g->work);
    g->works = s->works;
    *graph = g;
    return OK;
}
int cuGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long flags) {
    BEGIN;
    Thing *g = find(GRAPH, graph);
    if (!g || flags) return INVALID_HANDLE;
    Thing *e = make(EXEC, 0);
    memcpy(e->work, g->work, sizeof e->work);
    e->works = g->works;
    *exec = e;
    return OK;
}
int cuGraphDestroy(void *graph) { BEGIN; return drop(GRAPH, graph); }
int cuGraphExecDestroy(void *exec) { BEGIN; return drop(EXEC, exec); }
int cuGraphLaunch(void *exec, void *stream) {
    BEGIN;
    Thing *e = find(EXEC, exec);
    if (!e || !find(STREAM, stream)) return INVALID_HANDLE;
    for (int i = 0; i < e->works; i++) e->work[i].run(&e->work[i]);
    return OK;
}
int cuEventCreate(void **event, unsigned flags) {
    BEGIN;
    if (flags != 2) return INVALID_VALUE; /* one that tells time is not wanted */
    *event = make(EVENT, 0);
    return OK;
}
int cuEventDestroy_v2(void *event) { BEGIN; return drop(EVENT, event); }
int cuEventRecord(void *event, void *stream) {
    BEGIN;
    Thing *e = find(EVENT, event);
    if (!e || (stream && !find(STREAM, stream))) return INVALID_HANDLE;
    return OK;
}
int cuEventSynchronize(void *event) { BEGIN_UNSAFE; return find(EVENT, event) ? OK : INVALID_HANDLE; }

/* --- kernels */

int cuModuleLoadData(void **module, const void *image) {
    BEGIN;
    if (strncmp(image, "CUBIN:", 6)) return INVALID_VALUE;
    Thing *m = make(MODULE, strlen(image) + 1);
    strcpy(m->memory, image);
    *module = m;
    return OK;
}
int cuModuleUnload(void *module) { BEGIN; return drop(MODULE, module); }
int cuModuleGetFunction(void **function, void *module, const char *name) {
    BEGIN;
    Thing *m = find(MODULE, module);
    if (!m) return INVALID_HANDLE;
    if (!strstr(m->memory, name)) return NOT_FOUND;
    *function = m;
    return OK;
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **parameters, void **extra) {
    BEGIN;
    if (!find(MODULE, function) || shared || extra || gy * gz * by * bz != 1) return INVALID_VALUE;
    size_t count = *(size_t *)parameters[2], threads = (size_t)gx * bx;
    void *target = *(void **)parameters[0];
    if (count > threads) count = threads;
    if (!holding(MEMORY, target, count)) return INVALID_VALUE;
    return queue(stream, (Work){fill, target, NULL, count, *(int *)parameters[1]});
}

/* --- NVRTC */

typedef struct { char *source; int failed; } Program;

const char *nvrtcGetErrorString(int code) { return code == 6 ? "NVRTC_ERROR_COMPILATION" : "error"; }
int nvrtcCreateProgram(Program **program, const char *source, const char *name, int headers,
                       const char **contents, const char **includes) {
    (void)name;
    if (headers || contents || includes) return 3;
    *program = calloc(1, sizeof **program);
    (*program)->source = strdup(source);
    return 0;
}
int nvrtcCompileProgram(Program *program, int count, const char **options) {
    if (count < 1 || strncmp(options[0], "--gpu-architecture=sm_", 22)) return 5;
    int defined = 0;
    for (int i = 1; i < count; i++) defined |= !strcmp(options[i], "-DMISSING=1");
    program->failed = strstr(program->source, "#error") != NULL;
    program->failed |= strstr(program->source, "MISSING") && !defined;
    return program->failed ? 6 : 0;
}
int nvrtcGetProgramLogSize(Program *program, size_t *size) {
    *size = program->failed ? sizeof "kernel.cu(1): error: told to" : 1;
    return 0;
}
int nvrtcGetProgramLog(Program *program, char *log) {
    strcpy(log, program->failed ? "kernel.cu(1): error: told to" : "");
    return 0;
}
int nvrtcGetCUBINSize(Program *program, size_t *size) {
    *size = strlen(program->source) + 7;
    return 0;
}
int nvrtcGetCUBIN(Program *program, char *image) {
    sprintf(image, "CUBIN:%s", program->source);
    return 0;
}
int nvrtcDestroyProgram(Program **program) {
    free((*program)->source);
    free(*program);
    *program = NULL;
    return 0;
}
