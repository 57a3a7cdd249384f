/* Preloaded into a process: the n-th call that changes files below a folder fails, or the process is killed at it.
 *
 * The modes: 'k' killed before the call, 't' killed with half of a write written, 'f' the disk is full from there on,
 * 'e' this call alone is an input/output error.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* What a call is, beside its being one: it takes room, it may be cut in two, it changes which names there are. */
enum { ROOM = 1, CUT = 2, NAMES = 4 };

static char folder[4096], mode, of_names[1 << 16];
static long at, seen;

void faults_arm(const char *where, long number, char what) {
    strncpy(folder, where, sizeof folder - 1);
    at = number, mode = what, seen = 0;
}

long faults_seen(void) { return seen; }
int faults_of_names(long number) { return number < (long)sizeof of_names && of_names[number]; }

static int inside(int directory, const char *path) {
    char whole[8192], base[4096] = "";
    if (!folder[0] || !path) return 0;
    if (path[0] != '/') {
        char link[64];
        snprintf(link, sizeof link, directory == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", directory);
        ssize_t n = readlink(link, base, sizeof base - 1);
        base[n > 0 ? n : 0] = 0;
    }
    snprintf(whole, sizeof whole, "%s/%s", base, path);
    return strncmp(path[0] == '/' ? path : whole, folder, strlen(folder)) == 0;
}

static int inside_fd(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = folder[0] ? readlink(link, path, sizeof path - 1) : -1;
    if (n <= 0) return 0;
    path[n] = 0;
    return inside(AT_FDCWD, path);
}

/* 0: the call is made; -1: it fails; 1: half of it is made, and then the process dies. */
static int fault(int what) {
    long number = __sync_add_and_fetch(&seen, 1);
    if (what & NAMES && number < (long)sizeof of_names) of_names[number] = 1;
    if (!at) return 0;
    if (number == at && mode == 'k') raise(SIGKILL);
    if (number == at && mode == 't') {
        if (what & CUT) return 1;
        raise(SIGKILL);
    }
    if (number >= at && mode == 'f' && what & ROOM) return errno = ENOSPC, -1;
    if (number == at && mode == 'e') return errno = EIO, -1;
    return 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define HALF(call) do { call; raise(SIGKILL); } while (0)

#define OPEN(name)                                                                         \
    int name(const char *path, int flags, ...) {                                           \
        va_list rest; va_start(rest, flags); mode_t m = va_arg(rest, mode_t); va_end(rest); \
        if ((flags & (O_CREAT | O_TRUNC)) && inside(AT_FDCWD, path) && fault(ROOM)) return -1; \
        return REAL(name)(path, flags, m);                                                  \
    }
OPEN(open)
OPEN(open64)
#define OPENAT(name)                                                                        \
    int name(int fd, const char *path, int flags, ...) {                                     \
        va_list rest; va_start(rest, flags); mode_t m = va_arg(rest, mode_t); va_end(rest);  \
        if ((flags & (O_CREAT | O_TRUNC)) && inside(fd, path) && fault(ROOM)) return -1;        \
        return REAL(name)(fd, path, flags, m);                                               \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t size) {
    int f = inside_fd(fd) ? fault(ROOM | CUT) : 0;
    if (f < 0) return -1;
    if (f) HALF(REAL(write)(fd, data, size / 2));
    return REAL(write)(fd, data, size);
}
#define PWRITE(name)                                                   \
    ssize_t name(int fd, const void *data, size_t size, off_t offset) { \
        int f = inside_fd(fd) ? fault(ROOM | CUT) : 0;                           \
        if (f < 0) return -1;                                           \
        if (f) HALF(REAL(name)(fd, data, size / 2, offset));            \
        return REAL(name)(fd, data, size, offset);                      \
    }
PWRITE(pwrite)
PWRITE(pwrite64)
ssize_t writev(int fd, const struct iovec *parts, int count) {
    int f = inside_fd(fd) ? fault(ROOM | CUT) : 0;
    if (f < 0) return -1;
    if (f) HALF(REAL(writev)(fd, parts, count / 2));
    return REAL(writev)(fd, parts, count);
}
size_t fwrite(const void *data, size_t size, size_t count, FILE *file) {
    int f = inside_fd(fileno(file)) ? fault(ROOM | CUT) : 0;
    if (f < 0) return 0;
    if (f) HALF((REAL(fwrite)(data, size, count / 2, file), fflush(file)));
    return REAL(fwrite)(data, size, count, file);
}
#define ON_FD(name, type, what)                             \
    int name(int fd, type x) {                               \
        if (inside_fd(fd) && fault(what)) return -1;         \
        return REAL(name)(fd, x);                            \
    }
ON_FD(ftruncate, off_t, 0)
ON_FD(ftruncate64, off_t, 0)
int fsync(int fd) { return inside_fd(fd) && fault(0) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return inside_fd(fd) && fault(0) ? -1 : REAL(fdatasync)(fd); }
int truncate(const char *p, off_t n) { return inside(AT_FDCWD, p) && fault(0) ? -1 : REAL(truncate)(p, n); }
int truncate64(const char *p, off_t n) { return inside(AT_FDCWD, p) && fault(0) ? -1 : REAL(truncate64)(p, n); }
int rename(const char *a, const char *b) { return inside(AT_FDCWD, b) && fault(NAMES) ? -1 : REAL(rename)(a, b); }
int renameat(int d, const char *a, int e, const char *b) {
    return inside(e, b) && fault(NAMES) ? -1 : REAL(renameat)(d, a, e, b);
}
int renameat2(int d, const char *a, int e, const char *b, unsigned flags) {
    return inside(e, b) && fault(NAMES) ? -1 : REAL(renameat2)(d, a, e, b, flags);
}
int mkdir(const char *p, mode_t m) { return inside(AT_FDCWD, p) && fault(ROOM | NAMES) ? -1 : REAL(mkdir)(p, m); }
int mkdirat(int d, const char *p, mode_t m) { return inside(d, p) && fault(ROOM | NAMES) ? -1 : REAL(mkdirat)(d, p, m); }
int unlink(const char *p) { return inside(AT_FDCWD, p) && fault(NAMES) ? -1 : REAL(unlink)(p); }
int unlinkat(int d, const char *p, int f) { return inside(d, p) && fault(NAMES) ? -1 : REAL(unlinkat)(d, p, f); }
int rmdir(const char *p) { return inside(AT_FDCWD, p) && fault(NAMES) ? -1 : REAL(rmdir)(p); }
