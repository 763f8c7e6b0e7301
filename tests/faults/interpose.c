/* Preloaded into a program under test: counts its file operations below SCPEFT_TEST_FAULT_DIR and
 * makes one of them go wrong, so that a crash or a full disk can be tried at every single one.
 *
 *   SCPEFT_TEST_FAULT=count        writes the number of operations to SCPEFT_TEST_FAULT_LOG at exit
 *   SCPEFT_TEST_FAULT=kill:N       SIGKILL in place of operation N (a write: after half of it)
 *   SCPEFT_TEST_FAULT=ERRNO:N:M    operations N to N+M-1 fail with that errno number; of a write half
 *                                  is done, as on a full disk
 * Without SCPEFT_TEST_FAULT_DIR nothing is counted.
 *
 *   SCPEFT_TEST_CLOCK=S            the system's clock jumps with every look at it: S seconds ahead, as many
 *                                  back, right again. Clocks that only run forward are left alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long seen;

static int below(const char *path) {
    const char *dir = getenv("SCPEFT_TEST_FAULT_DIR");
    return dir && path && strncmp(path, dir, strlen(dir)) == 0;
}

static const char *name_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    path[n < 0 ? 0 : n] = 0;
    return path;
}

static void log_count(const char *what, const char *path) {
    const char *log = getenv("SCPEFT_TEST_FAULT_LOG");
    int (*real)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
    ssize_t (*put)(int, const void *, size_t) =
        (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    if (!log) return;
    int fd = real(log, O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (fd < 0) return;
    char line[PATH_MAX + 64];
    int n = snprintf(line, sizeof line, "%ld %s %s\n", seen, what, path);
    if (put(fd, line, (size_t)n) < 0) abort();
    close(fd);
}

/* 0: go on; -1: die; otherwise the errno to fail with. */
static int fault(const char *what, const char *path) {
    const char *plan = getenv("SCPEFT_TEST_FAULT");
    if (!plan || !below(path)) return 0;
    pthread_mutex_lock(&lock);
    long now = ++seen;
    long first = 0, many = 1, code = 0;
    int result = 0;
    if (sscanf(plan, "kill:%ld", &first) == 1) {
        if (now == first) result = -1;
    } else if (sscanf(plan, "%ld:%ld:%ld", &code, &first, &many) == 3) {
        if (now >= first && now < first + many) result = (int)code;
    } else {
        log_count(what, path);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

static int judge(const char *what, const char *path) {
    int f = fault(what, path);
    if (f < 0) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    if (f > 0) errno = f;
    return f;
}

#define REAL(type, name, ...) ((type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

int open64(const char *path, int flags, ...) {
    mode_t mode = 0;
    if (flags & O_CREAT) {
        va_list rest;
        va_start(rest, flags);
        mode = va_arg(rest, mode_t);
        va_end(rest);
        if (judge("create", path)) return -1;
    }
    return REAL(int, open64, const char *, int, ...)(path, flags, mode);
}

ssize_t write(int fd, const void *bytes, size_t n) {
    char path[PATH_MAX];
    int f = fd > 2 ? fault("write", name_of(fd, path)) : 0;
    if (f && n > 1) {
        ssize_t half = REAL(ssize_t, write, int, const void *, size_t)(fd, bytes, n / 2);
        (void)half;
    }
    if (f < 0) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    if (f > 0) {
        errno = f;
        return -1;
    }
    return REAL(ssize_t, write, int, const void *, size_t)(fd, bytes, n);
}

int fsync(int fd) {
    char path[PATH_MAX];
    return judge("sync", name_of(fd, path)) ? -1 : REAL(int, fsync, int)(fd);
}

int mkdir(const char *path, mode_t mode) {
    return judge("mkdir", path) ? -1 : REAL(int, mkdir, const char *, mode_t)(path, mode);
}

int rename(const char *from, const char *to) {
    return judge("rename", to) ? -1 : REAL(int, rename, const char *, const char *)(from, to);
}

int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    if (judge("exchange", to)) return -1;
    return REAL(int, renameat2, int, const char *, int, const char *, unsigned)(a, from, b, to, flags);
}

int unlink(const char *path) {
    return judge("unlink", path) ? -1 : REAL(int, unlink, const char *)(path);
}

int unlinkat(int dir, const char *name, int flags) {
    char path[PATH_MAX];
    const char *full = dir == AT_FDCWD ? name : name_of(dir, path);
    return judge("unlink", full) ? -1 : REAL(int, unlinkat, int, const char *, int)(dir, name, flags);
}

int clock_gettime(clockid_t id, struct timespec *now) {
    static long looks;
    int status = (int)syscall(SYS_clock_gettime, id, now);
    const char *jump = getenv("SCPEFT_TEST_CLOCK");
    if (status == 0 && jump && id == CLOCK_REALTIME) {
        static const int direction[] = {1, -1, 0};
        now->tv_sec += direction[__atomic_fetch_add(&looks, 1, __ATOMIC_RELAXED) % 3] * atol(jump);
    }
    return status;
}
