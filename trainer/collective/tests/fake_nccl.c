/* A library that looks like NCCL, the CUDA driver and libtorch's stream function to those that load it by
   name. "Devices" are host memory, every rank holds the same values, and what is called is written down.
   What goes wrong is chosen when it is compiled:
     OLD            version 2.14
     NO_GATHER      ncclAllGather is not there
     INIT_FAILS     forming a communicator fails at once
     FORMS_AFTER    how often it is asked about before it is formed; -1: never
     FAILS_AFTER    collectives after which the background reports a remote error */

#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#ifndef FORMS_AFTER
#define FORMS_AFTER 3
#endif

enum { SUCCESS = 0, SYSTEM = 2, INVALID = 4, REMOTE = 6, IN_PROGRESS = 7 };

typedef struct { char bytes[128]; } id_t128;
typedef struct {
    size_t size;
    unsigned magic, version;
    int blocking, cga, ctas_min, ctas_max;
    const char *net;
    int split;
} config_t;

static char said[4096];
static int asked, ranks, queued;
static int the_comm, the_stream, the_context;

static void say(const char *what) {
    strncat(said, what, sizeof said - strlen(said) - 1);
    strncat(said, " ", sizeof said - strlen(said) - 1);
}

/* For the test. */
const char *fake_said(void) { return said; }

int ncclGetVersion(int *version) {
#ifdef OLD
    *version = 21400;
#else
    *version = 22809;
#endif
    return SUCCESS;
}

const char *ncclGetErrorString(int code) {
    return code == REMOTE ? "remote process exited" : code == SYSTEM ? "system error" : "other";
}

int ncclGetUniqueId(id_t128 *id) {
    for (int i = 0; i < 128; i++)
        id->bytes[i] = (char)(i + 100);
    say("id");
    return SUCCESS;
}

int ncclCommInitRankConfig(void **comm, int count, id_t128 id, int rank, config_t *config) {
    char text[96];
    int good = 1;
    for (int i = 0; i < 128; i++)
        good = good && id.bytes[i] == (char)(i + 100);
    if (!good || config->magic != 0xcafebeef || config->size != 48 || config->blocking != 0 ||
        config->cga != INT_MIN || config->ctas_max != INT_MIN || config->net || config->split != INT_MIN)
        return INVALID;
    snprintf(text, sizeof text, "init(%d of %d, %u)", rank, count, config->version);
    say(text);
#ifdef INIT_FAILS
    return SYSTEM;
#endif
    ranks = count;
    *comm = &the_comm;
    return IN_PROGRESS;
}

int ncclCommGetAsyncError(void *comm, int *state) {
    if (comm != &the_comm)
        return INVALID;
    *state = SUCCESS;
    if (FORMS_AFTER < 0 || asked < FORMS_AFTER) {
        asked++;
        *state = IN_PROGRESS;
    }
#ifdef FAILS_AFTER
    if (queued > FAILS_AFTER)
        *state = REMOTE;
#endif
    return SUCCESS;
}

int ncclCommAbort(void *comm) { (void)comm; say("abort"); return SUCCESS; }
int ncclCommFinalize(void *comm) { (void)comm; say("finalize"); return SUCCESS; }
int ncclCommDestroy(void *comm) { (void)comm; say("destroy"); return SUCCESS; }

static int check(const char *what, size_t count, int type, void *comm, void *stream) {
    char text[96];
    snprintf(text, sizeof text, "%s(%zu of %d)", what, count, type);
    say(text);
    queued++;
    return comm == &the_comm && stream == &the_stream;
}

int ncclAllReduce(const void *sent, void *received, size_t count, int type, int op, void *comm, void *stream) {
    if (!check("reduce", count, type, comm, stream) || op != 0)
        return INVALID;
    for (size_t i = 0; i < count; i++) {
        if (type == 7)
            ((float *)received)[i] = ((const float *)sent)[i] * ranks;
        else if (type == 4)
            ((long *)received)[i] = ((const long *)sent)[i] * ranks;
        else
            return INVALID;
    }
    return SUCCESS;
}

int ncclBroadcast(const void *sent, void *received, size_t count, int type, int root, void *comm, void *stream) {
    return check("broadcast", count, type, comm, stream) && root == 0 && sent == received ? SUCCESS : INVALID;
}

#ifndef NO_GATHER
int ncclAllGather(const void *sent, void *received, size_t count, int type, void *comm, void *stream) {
    size_t bytes = count * (type == 7 ? 4 : type == 4 ? 8 : 1);
    if (!check("gather", count, type, comm, stream))
        return INVALID;
    for (int rank = 0; rank < ranks; rank++)
        memcpy((char *)received + rank * bytes, sent, bytes);
    return SUCCESS;
}
#endif

int aoti_torch_get_current_cuda_stream(int device, void **stream) {
    *stream = &the_stream;
    return device == 0 ? 0 : 1;
}

int cuInit(unsigned flags) { return flags != 0; }
int cuDeviceGet(int *device, int index) { *device = index + 40; return index > 1 ? 101 : 0; }

int cuDeviceGetUuid_v2(char *uuid, int device) {
    for (int i = 0; i < 16; i++)
        uuid[i] = (char)(i * 16 + device - 40);
    return 0;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    say(device == 41 ? "retain(1)" : "retain(0)");
    *context = &the_context;
    return 0;
}

int cuCtxSetCurrent(void *context) { say("current"); return context == &the_context ? 0 : 201; }
