/* A host's wall clock, moved: preloaded into its processes, it adds the seconds in /etc/mlbox-lab/clock.

   The lab's hosts are one kernel's, whose clock is everybody's. No other clock is touched, nor what the kernel itself
   stamps: so the filesystem's process, which waits until points in time by the kernel's clock, is left out; moved back it
   would never sleep again. System calls instead of libc's functions, so that the library loads with the oldest glibc
   among the hosts. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long moved(void)
{
    if (!strcmp(program_invocation_short_name, "glusterfs"))
        return 0;
    char text[32];
    int before = errno, file = syscall(SYS_openat, AT_FDCWD, "/etc/mlbox-lab/clock", O_RDONLY | O_CLOEXEC);
    long length = file < 0 ? 0 : syscall(SYS_read, file, text, sizeof text - 1);
    if (file >= 0)
        syscall(SYS_close, file);
    text[length > 0 ? length : 0] = 0;
    errno = before;
    return atol(text);
}

int clock_gettime(clockid_t which, struct timespec *now)
{
    int failed = syscall(SYS_clock_gettime, which, now);
    if (!failed && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE))
        now->tv_sec += moved();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    int failed = syscall(SYS_gettimeofday, now, zone);
    if (!failed)
        now->tv_sec += moved();
    return failed;
}

time_t time(time_t *to)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to)
        *to = now.tv_sec;
    return now.tv_sec;
}
