/* A PKCS#11 module around another one, with faults that a test switches on and off.
 *
 * Every call goes on to the real module, unless the control file, which the test shares with
 * every process that has loaded this module, says otherwise. support/hsm_shim.py builds this
 * and writes that file; the two agree on `struct control`. It keeps no lock during a call.
 *
 *   MESHMINT_TEST_SHIM_MODULE    the real module
 *   MESHMINT_TEST_SHIM_CONTROL   the control file
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* Every argument of PKCS#11 is a CK_ULONG, a pointer, or a CK_BBOOL: one machine word when
   passed. So one type serves for all, and none of the standard's header is needed. */
typedef uintptr_t word;

enum { CKR_OK = 0, CKR_GENERAL_ERROR = 5, CKR_SESSION_COUNT = 0xB1, CKR_SESSION_HANDLE_INVALID = 0xB3 };

enum function {
#define F(name, arguments, first) name##_,
#include "functions.def"
#undef F
    FUNCTIONS
};

struct function_list {
    unsigned char major, minor;
    void *functions[FUNCTIONS];
};

/* --- what the test says ------------------------------------------------------------------ */

enum action { NONE, FAIL, HANG, DELAY, FLIP, CRASH };

struct fault {
    _Atomic uint64_t action; /* written last, and made NONE first */
    _Atomic uint64_t value;  /* FAIL: the CK_RV; DELAY: nanoseconds; CRASH: the signal */
    _Atomic int64_t left;    /* calls that will meet it, in all processes; negative: no end */
    _Atomic uint64_t met;    /* calls that have */
    _Atomic uint64_t calls;  /* all calls */
};

struct control {
    _Atomic int64_t idle_limit; /* sessions unused for so many nanoseconds end; 0: never */
    _Atomic int64_t ended_at;   /* sessions opened before this time have ended */
    struct fault faults[FUNCTIONS];
};

static struct control *control;
static struct function_list *real;

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* The fault that this call meets. */
static enum action take(struct fault *fault)
{
    atomic_fetch_add(&fault->calls, 1);
    enum action action = (enum action)atomic_load(&fault->action);
    if (action == NONE)
        return NONE;
    int64_t left = atomic_load(&fault->left);
    while (left > 0 && !atomic_compare_exchange_weak(&fault->left, &left, left - 1))
        ;
    if (left == 0)
        return NONE;
    atomic_fetch_add(&fault->met, 1);
    return action;
}

static void crash(int number)
{
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    signal(number, SIG_DFL);
    raise(number);
}

/* --- sessions, as far as they can end by themselves ---------------------------------------- */

static struct session {
    word handle; /* 0: free, which PKCS#11 never uses for a session */
    int64_t opened, used;
    unsigned inside; /* calls */
} sessions[1024];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct session *find(word handle)
{
    for (size_t i = 0; i < sizeof sessions / sizeof *sessions; i++)
        if (sessions[i].handle == handle)
            return &sessions[i];
    return NULL;
}

/* Ends what is due in the real module too, so that the login ends with the last session. */
static void sweep(int64_t time)
{
    int64_t limit = atomic_load(&control->idle_limit), ended_at = atomic_load(&control->ended_at);
    for (size_t i = 0; i < sizeof sessions / sizeof *sessions; i++) {
        struct session *session = &sessions[i];
        bool is_due = session->opened < ended_at || (limit && time - session->used > limit);
        if (session->handle && !session->inside && is_due) {
            ((word (*)(word))real->functions[C_CloseSession_])(session->handle);
            session->handle = 0;
        }
    }
}

static bool enter(word handle)
{
    int64_t time = now();
    pthread_mutex_lock(&lock);
    if (atomic_load(&control->idle_limit) || atomic_load(&control->ended_at))
        sweep(time);
    struct session *session = handle ? find(handle) : NULL;
    if (session) {
        session->inside++;
        session->used = time;
    }
    pthread_mutex_unlock(&lock);
    return session != NULL;
}

static void leave(word handle, bool is_closed)
{
    pthread_mutex_lock(&lock);
    struct session *session = find(handle);
    if (session) {
        session->inside--;
        session->used = now();
        if (is_closed)
            session->handle = 0;
    }
    pthread_mutex_unlock(&lock);
}

static word opened(word handle)
{
    pthread_mutex_lock(&lock);
    struct session *session = find(0);
    if (session)
        *session = (struct session){handle, now(), now(), 0};
    pthread_mutex_unlock(&lock);
    return session ? CKR_OK : CKR_SESSION_COUNT;
}

static void forget_sessions(void)
{
    pthread_mutex_lock(&lock);
    memset(sessions, 0, sizeof sessions);
    pthread_mutex_unlock(&lock);
}

/* --- one call ------------------------------------------------------------------------------ */

/* Arguments beyond those that a function has are 0, and are not passed on. */
static word pass_on(enum function which, int count, const word a[8])
{
    void *f = real->functions[which];
    switch (count) {
    case 1: return ((word (*)(word))f)(a[0]);
    case 2: return ((word (*)(word, word))f)(a[0], a[1]);
    case 3: return ((word (*)(word, word, word))f)(a[0], a[1], a[2]);
    case 4: return ((word (*)(word, word, word, word))f)(a[0], a[1], a[2], a[3]);
    case 5: return ((word (*)(word, word, word, word, word))f)(a[0], a[1], a[2], a[3], a[4]);
    case 6:
        return ((word (*)(word, word, word, word, word, word))f)(a[0], a[1], a[2], a[3], a[4], a[5]);
    default:
        return ((word (*)(word, word, word, word, word, word, word, word))f)(
            a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
    }
}

static word meet(enum function which, int count, const word a[8])
{
    /* C_Sign(session, data, length, signature, signature length) */
    if (which == C_Sign_ && !a[3])
        return pass_on(which, count, a); /* asks for a length; no HSM is asked for that */
    struct fault *fault = &control->faults[which];
    enum action action = take(fault);
    uint64_t value = atomic_load(&fault->value);
    struct timespec pause_time = {(time_t)(value / 1000000000), (long)(value % 1000000000)};
    switch (action) {
    case FAIL:
        return value;
    case HANG:
        for (;;)
            pause();
    case CRASH:
        crash((int)value);
        break;
    case DELAY:
        while (nanosleep(&pause_time, &pause_time))
            ;
        break;
    case FLIP:
    case NONE:
        break;
    }
    word result = pass_on(which, count, a);
    if (action == FLIP && which == C_Sign_ && result == CKR_OK)
        ((unsigned char *)a[3])[*(word *)a[4] - 1] ^= 1;
    return result;
}

enum first { OTHER, SESSION };

static word call(enum function which, int count, enum first first, const word a[8])
{
    if (first == SESSION && !enter(a[0])) {
        atomic_fetch_add(&control->faults[which].calls, 1);
        return CKR_SESSION_HANDLE_INVALID;
    }
    word result = meet(which, count, a);
    if (first == SESSION)
        leave(a[0], which == C_CloseSession_ && result == CKR_OK);
    if (result == CKR_OK && which == C_OpenSession_)
        return opened(*(word *)a[4]);
    if (result == CKR_OK && (which == C_Finalize_ || which == C_CloseAllSessions_))
        forget_sessions(); /* of all slots: the tests have one */
    return result;
}

#define PARAMETERS_1 word a
#define PARAMETERS_2 PARAMETERS_1, word b
#define PARAMETERS_3 PARAMETERS_2, word c
#define PARAMETERS_4 PARAMETERS_3, word d
#define PARAMETERS_5 PARAMETERS_4, word e
#define PARAMETERS_6 PARAMETERS_5, word f
#define PARAMETERS_8 PARAMETERS_6, word g, word h
#define WORDS_1 a
#define WORDS_2 WORDS_1, b
#define WORDS_3 WORDS_2, c
#define WORDS_4 WORDS_3, d
#define WORDS_5 WORDS_4, e
#define WORDS_6 WORDS_5, f
#define WORDS_8 WORDS_6, g, h

#define F(name, arguments, first)                                       \
    static word call_##name(PARAMETERS_##arguments)                     \
    {                                                                   \
        return call(name##_, arguments, first, (word[8]){WORDS_##arguments}); \
    }
#include "functions.def"
#undef F

/* --- loading ------------------------------------------------------------------------------- */

word C_GetFunctionList(struct function_list **list);

static struct function_list ours = {
    .functions = {
#define F(name, arguments, first) call_##name,
#include "functions.def"
#undef F
    },
};
static pthread_once_t loading = PTHREAD_ONCE_INIT;

static void load(void)
{
    const char *module = getenv("MESHMINT_TEST_SHIM_MODULE");
    const char *path = getenv("MESHMINT_TEST_SHIM_CONTROL");
    if (!module || !path) {
        fprintf(stderr, "shim: MESHMINT_TEST_SHIM_MODULE or MESHMINT_TEST_SHIM_CONTROL is not set\n");
        return;
    }
    int file = open(path, O_RDWR | O_CLOEXEC);
    void *mapped = file < 0 ? MAP_FAILED
        : mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file >= 0)
        close(file);
    if (mapped == MAP_FAILED) {
        perror("shim: the control file");
        return;
    }
    control = mapped;
    void *library = dlopen(module, RTLD_NOW | RTLD_LOCAL);
    word (*get)(struct function_list **) = NULL;
    if (library)
        *(void **)&get = dlsym(library, "C_GetFunctionList");
    struct function_list *found;
    if (!get || get(&found) != CKR_OK) {
        fprintf(stderr, "shim: %s is no PKCS#11 module\n", module);
        return;
    }
    ours.major = found->major;
    ours.minor = found->minor;
    ours.functions[C_GetFunctionList_] = (void *)C_GetFunctionList;
    real = found;
}

word C_GetFunctionList(struct function_list **list)
{
    pthread_once(&loading, load);
    if (!real)
        return CKR_GENERAL_ERROR;
    *list = &ours;
    return CKR_OK;
}
