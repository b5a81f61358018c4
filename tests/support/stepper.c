/* stepper.c - the hot loop of the single-step tests: a traced child, instruction by instruction (support/stepper.py).
 *
 * A region is the code between the entry of a function of the core, found by a breakpoint, and its return.  Only the child's own copy of
 * the text is changed.  The child is stopped by ptrace whenever a function here returns, or it has ended (STEP_ENDED).
 *
 * x86-64 and aarch64.  On aarch64 an exclusive load and its store never succeed when stepped apart: the machine needs LSE atomics.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>

enum step_end { STEP_LIMIT = 0, STEP_RETURNED = 1, STEP_CHANGED = 2, STEP_ENDED = 3, STEP_SIGNAL = 4, STEP_LOST = 5, STEP_HIT = 6 };

/* Bytes that other processes see: as they are (a mapping of the tracer), and as they were when last compared. */
typedef struct step_range { const uint8_t *now; uint8_t *before; uint64_t size; } step_range;

typedef struct step_child {
    int64_t pid;
    uint64_t home, frame;  /* of the region: where it returns to, and the stack pointer then */
    int64_t detail;        /* STEP_SIGNAL: its number; STEP_ENDED: the wait status; STEP_LOST: errno; STEP_HIT: of which entry */
} step_child;

#if defined __x86_64__
typedef struct user_regs_struct step_regs;
#define PC(r) ((r).rip)
#define SP(r) ((r).rsp)
#define CALL_NUMBER(r) ((r).orig_rax)
#define BREAK_BYTES 1
#define BREAK_WORD UINT64_C(0xCC)
#define BREAK_SKIP 1 /* the program counter is behind it */
static int is_syscall(uint64_t code) { return (code & 0xFFFF) == 0x050F; }
#elif defined __aarch64__
typedef struct user_regs_struct step_regs;
#define PC(r) ((r).pc)
#define SP(r) ((r).sp)
#define CALL_NUMBER(r) ((r).regs[8])
#define BREAK_BYTES 4
#define BREAK_WORD UINT64_C(0xD4200000)
#define BREAK_SKIP 0
static int is_syscall(uint64_t code) { return (uint32_t)code == 0xD4000001u; }
#else
#error "this machine is not known here"
#endif

static int lost(step_child *c)
{
    c->detail = errno;
    return STEP_LOST;
}

static int registers(step_child *c, int request, step_regs *r)
{
    struct iovec v = { r, sizeof *r };
    return ptrace(request, (pid_t)c->pid, (void *)(uintptr_t)NT_PRSTATUS, &v) ? -1 : 0;
}

/* Waits for the next stop; 0: it is a trap. */
static int stopped(step_child *c, int trap)
{
    int status;
    if (waitpid((pid_t)c->pid, &status, __WALL) < 0) return lost(c);
    c->detail = status;
    if (!WIFSTOPPED(status)) return STEP_ENDED;
    c->detail = WSTOPSIG(status);
    return WSTOPSIG(status) == trap ? 0 : STEP_SIGNAL;
}

static int resumed(step_child *c, int request, int trap) { return ptrace(request, (pid_t)c->pid, NULL, NULL) ? lost(c) : stopped(c, trap); }

/* The child has stopped itself after PTRACE_TRACEME; it ends with its tracer from here on. */
int step_begin(step_child *c)
{
    int e = stopped(c, 19 /* SIGSTOP */);
    if (!e && ptrace(PTRACE_SETOPTIONS, (pid_t)c->pid, NULL, (void *)(uintptr_t)(PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD))) e = lost(c);
    return e;
}

/* ---- breakpoints ------------------------------------------------------------------------------------------------------------ */

/* The code at the entries was read before the child was forked: `code` is what stood there. */
int step_breakpoints(step_child *c, const uint64_t *entries, const uint64_t *code, uint64_t n, int set)
{
    const uint64_t mask = (UINT64_C(1) << (8 * BREAK_BYTES)) - 1;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t word = set ? (code[i] & ~mask) | BREAK_WORD : code[i];
        if (ptrace(PTRACE_POKETEXT, (pid_t)c->pid, (void *)(uintptr_t)entries[i], (void *)(uintptr_t)word)) return lost(c);
    }
    return 0;
}

/* Full speed to the next entry: STEP_HIT, the breakpoints gone. */
int step_to_entry(step_child *c, const uint64_t *entries, const uint64_t *code, uint64_t n)
{
    step_regs r;
    int e = step_breakpoints(c, entries, code, n, 1);
    if (!e) e = resumed(c, PTRACE_CONT, 5 /* SIGTRAP */);
    if (!e) e = step_breakpoints(c, entries, code, n, 0);
    if (e) return e;
    if (registers(c, PTRACE_GETREGSET, &r)) return lost(c);
    PC(r) -= BREAK_SKIP;
    if (registers(c, PTRACE_SETREGSET, &r)) return lost(c);
#if defined __x86_64__
    errno = 0;
    c->home = (uint64_t)ptrace(PTRACE_PEEKDATA, (pid_t)c->pid, (void *)(uintptr_t)SP(r), NULL);
    if (errno) return lost(c);
    c->frame = SP(r) + 8;
#else
    c->home = r.regs[30];
    c->frame = SP(r);
#endif
    for (uint64_t i = 0; i < n; i++)
        if (entries[i] == PC(r)) {
            c->detail = (int64_t)i;
            return STEP_HIT;
        }
    c->detail = -1;
    return STEP_SIGNAL; /* a trap that is none of ours */
}

/* ---- steps -------------------------------------------------------------------------------------------------------------------- */

/* Has anything changed since the last comparison? */
int step_compare(const step_range *ranges, uint64_t n)
{
    int changed = 0;
    for (uint64_t i = 0; i < n; i++) {
        if (memcmp(ranges[i].now, ranges[i].before, ranges[i].size) == 0) continue;
        memcpy(ranges[i].before, ranges[i].now, ranges[i].size);
        changed = 1;
    }
    return changed;
}

#define STEP_REPEATED 64
#define STEP_CHANGED_BIT (UINT64_C(1) << 63)

/* At most `limit` instructions; *done says how many.  Stops behind the return of the region, and with ranges also behind each system call.
 * With pcs it notes where each one stood, and which ones changed the ranges (or were system calls); without it stops behind those too. */
int step_on(step_child *c, uint64_t limit, const step_range *ranges, uint64_t n, uint64_t *pcs, uint64_t *done)
{
    step_regs r;
    uint64_t again = 0;
    *done = 0;
    if (registers(c, PTRACE_GETREGSET, &r)) return lost(c);
    while (*done < limit) {
        uint64_t pc = PC(r);
        int call = n && is_syscall((uint64_t)ptrace(PTRACE_PEEKTEXT, (pid_t)c->pid, (void *)(uintptr_t)PC(r), NULL));
        if (pcs) pcs[*done] = pc;
        int e = resumed(c, PTRACE_SINGLESTEP, 5 /* SIGTRAP */);
        if (e) return e;
        ++*done;
        if (registers(c, PTRACE_GETREGSET, &r)) return lost(c);
        again = PC(r) == pc ? again + 1 : 0; /* a repeated string instruction copies byte by byte: not each is compared */
        /* Behind a system call a file may be shorter than its mapping: the caller looks. */
        int changed = call || (n && again % STEP_REPEATED == 0 && step_compare(ranges, n));
        if (pcs && changed) pcs[*done - 1] |= STEP_CHANGED_BIT;
        if (PC(r) == c->home && SP(r) == c->frame) return STEP_RETURNED;
        if (call || (changed && !pcs)) return STEP_CHANGED;
    }
    return STEP_LIMIT;
}

/* Full speed to the `times`-th visit of an instruction that is not where the child stands: STEP_HIT, and it has not been executed then. */
int step_to_pc(step_child *c, uint64_t pc, uint64_t code, uint64_t times)
{
    step_regs r;
    for (uint64_t i = 0; i < times; i++) {
        int e = i ? resumed(c, PTRACE_SINGLESTEP, 5) : 0;
        if (!e) e = step_breakpoints(c, &pc, &code, 1, 1);
        if (!e) e = resumed(c, PTRACE_CONT, 5);
        if (!e) e = step_breakpoints(c, &pc, &code, 1, 0);
        if (e) return e;
        if (registers(c, PTRACE_GETREGSET, &r)) return lost(c);
        PC(r) -= BREAK_SKIP;
        if (registers(c, PTRACE_SETREGSET, &r)) return lost(c);
        if (PC(r) != pc) return STEP_SIGNAL;
    }
    return STEP_HIT;
}

/* Full speed to the return of the region. */
int step_finish(step_child *c, uint64_t code)
{
    step_regs r;
    for (;;) {
        int e = step_to_pc(c, c->home, code, 1);
        if (e != STEP_HIT) return e;
        if (registers(c, PTRACE_GETREGSET, &r)) return lost(c);
        if (SP(r) == c->frame) return STEP_RETURNED;
        e = resumed(c, PTRACE_SINGLESTEP, 5);
        if (e) return e;
    }
}

/* Where the child stands; 0: unknown. */
uint64_t step_where(step_child *c)
{
    step_regs r;
    return registers(c, PTRACE_GETREGSET, &r) ? 0 : PC(r);
}

/* ---- system calls --------------------------------------------------------------------------------------------------------------- */

/* To the next entry into a system call, or the next exit from one: STEP_HIT, its number in `detail`. */
int step_to_call(step_child *c)
{
    step_regs r;
    int e = resumed(c, PTRACE_SYSCALL, 5 | 0x80);
    if (e) return e;
    if (registers(c, PTRACE_GETREGSET, &r)) return lost(c);
    c->detail = (int64_t)CALL_NUMBER(r);
    return STEP_HIT;
}

/* Goes on untraced, with a signal (SIGSTOP: it stands still until SIGCONT). */
int step_leave(step_child *c, int signal) { return ptrace(PTRACE_DETACH, (pid_t)c->pid, NULL, (void *)(uintptr_t)signal) ? lost(c) : 0; }
/* Full speed, without waiting for a stop. */
int step_release(step_child *c) { return ptrace(PTRACE_CONT, (pid_t)c->pid, NULL, NULL) ? lost(c) : 0; }
