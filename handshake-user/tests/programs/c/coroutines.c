/* TLS on coroutines: every connection has a stack of its own, all on one thread, and the library's reads switch to
 * the others while they wait. So calls of the library are suspended, and return in any order.
 *
 *     coroutines client ADDRESS PORT COUNT              this many connections at once, one page each
 *     coroutines server ADDRESS PORT CERTIFICATE KEY    until it is killed
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <ucontext.h>
#include <unistd.h>

/* OpenSSL's libraries may be installed without its headers. */
typedef struct ssl_st SSL;
typedef struct ssl_ctx_st SSL_CTX;
typedef struct ssl_method_st SSL_METHOD;
typedef struct bio_st BIO;
typedef struct bio_method_st BIO_METHOD;
const SSL_METHOD *TLS_method(void);
SSL_CTX *SSL_CTX_new(const SSL_METHOD *);
int SSL_CTX_use_certificate_chain_file(SSL_CTX *, const char *);
int SSL_CTX_use_PrivateKey_file(SSL_CTX *, const char *, int);
SSL *SSL_new(SSL_CTX *);
void SSL_set_bio(SSL *, BIO *, BIO *);
int SSL_connect(SSL *);
int SSL_accept(SSL *);
int SSL_read(SSL *, void *, int);
int SSL_write(SSL *, const void *, int);
int SSL_shutdown(SSL *);
void SSL_free(SSL *);
BIO_METHOD *BIO_meth_new(int, const char *);
int BIO_meth_set_read(BIO_METHOD *, int (*)(BIO *, char *, int));
int BIO_meth_set_write(BIO_METHOD *, int (*)(BIO *, const char *, int));
int BIO_meth_set_ctrl(BIO_METHOD *, long (*)(BIO *, int, long, void *));
BIO *BIO_new(const BIO_METHOD *);
void BIO_set_data(BIO *, void *);
void *BIO_get_data(BIO *);
void BIO_set_init(BIO *, int);

enum { MAX_CONNECTIONS = 16, STACK = 1 << 18, FILETYPE_PEM = 1, TYPE_SOURCE_SINK = 0x0400 | 100, CTRL_FLUSH = 11 };

static struct coroutine {
    ucontext_t context;
    void *stack;
    int fd, is_busy, failed;
} all[MAX_CONNECTIONS];
static struct coroutine *current;
static ucontext_t scheduler;
static SSL_CTX *settings;
static BIO_METHOD *method;
static int (*handshake)(SSL *);

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void yield(void) {
    swapcontext(&current->context, &scheduler);
}

static int bio_read(BIO *bio, char *bytes, int size) {
    struct coroutine *own = BIO_get_data(bio);
    ssize_t count;
    while ((count = recv(own->fd, bytes, size, MSG_DONTWAIT)) < 0 && errno == EAGAIN)
        yield();
    return count;
}

static int bio_write(BIO *bio, const char *bytes, int size) {
    struct coroutine *own = BIO_get_data(bio);
    return send(own->fd, bytes, size, MSG_NOSIGNAL);
}

static long bio_control(BIO *bio, int command, long number, void *pointer) {
    (void)bio, (void)number, (void)pointer;
    return command == CTRL_FLUSH;
}

/* One connection, from its handshake to its close. */
static void serve(void) {
    struct coroutine *own = current;
    char page[512];
    SSL *ssl = SSL_new(settings);
    BIO *bio = BIO_new(method);
    BIO_set_data(bio, own);
    BIO_set_init(bio, 1);
    SSL_set_bio(ssl, bio, bio);
    own->failed = handshake(ssl) != 1;
    if (!own->failed && handshake == SSL_connect) {
        own->failed = SSL_write(ssl, "GET / HTTP/1.0\r\n\r\n", 18) != 18 || SSL_read(ssl, page, sizeof page) <= 0;
    } else if (!own->failed) {
        own->failed = SSL_read(ssl, page, sizeof page) <= 0 || SSL_write(ssl, "hello\n", 6) != 6;
    }
    SSL_shutdown(ssl);
    SSL_free(ssl);
    close(own->fd);
    own->is_busy = 0;
    yield();
}

static void start(int fd) {
    for (struct coroutine *free = all; free < all + MAX_CONNECTIONS; free++) {
        if (free->is_busy)
            continue;
        if (!free->stack && !(free->stack = malloc(STACK)))
            die("malloc");
        getcontext(&free->context);
        free->context.uc_stack = (stack_t){.ss_sp = free->stack, .ss_size = STACK};
        makecontext(&free->context, serve, 0);
        free->fd = fd;
        free->is_busy = 1;
        return;
    }
    close(fd);
}

/* Resumes each active coroutine once. Returns how many there are. */
static int turn(void) {
    int busy = 0;
    for (current = all; current < all + MAX_CONNECTIONS; current++) {
        if (current->is_busy) {
            busy++;
            swapcontext(&scheduler, &current->context);
        }
    }
    usleep(500);
    return busy;
}

int main(int count, char **arguments) {
    if (count < 5)
        return 2;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[3]))};
    if (inet_pton(AF_INET, arguments[2], &address.sin_addr) != 1)
        return 2;
    settings = SSL_CTX_new(TLS_method());
    method = BIO_meth_new(TYPE_SOURCE_SINK, "coroutine");
    BIO_meth_set_read(method, bio_read);
    BIO_meth_set_write(method, bio_write);
    BIO_meth_set_ctrl(method, bio_control);
    if (strcmp(arguments[1], "client") == 0) {
        handshake = SSL_connect;
        for (int left = atoi(arguments[4]); left > 0; left--) {
            int fd = socket(AF_INET, SOCK_STREAM, 0);
            if (connect(fd, (struct sockaddr *)&address, sizeof address))
                die("connect");
            start(fd);
        }
        while (turn())
            ;
        for (int index = 0; index < MAX_CONNECTIONS; index++)
            if (all[index].failed)
                return 1;
        return 0;
    }
    if (count < 6 || SSL_CTX_use_certificate_chain_file(settings, arguments[4]) != 1 ||
        SSL_CTX_use_PrivateKey_file(settings, arguments[5], FILETYPE_PEM) != 1)
        return 2;
    handshake = SSL_accept;
    int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, MAX_CONNECTIONS))
        die("listen");
    fcntl(listener, F_SETFL, O_NONBLOCK);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd >= 0)
            start(fd);
        turn();
    }
}
