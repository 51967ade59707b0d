/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/sigbus.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>

_Thread_local sigjmp_buf *sigbus_landing;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int result; /* constant after once */

static void on_sigbus(int number)
{
	if (sigbus_landing)
		siglongjmp(*sigbus_landing, 1);
	signal(number, SIG_DFL); /* not ours: again, and for good */
}

static void begin(void)
{
	const struct sigaction action = {.sa_handler = on_sigbus};

	result = sigaction(SIGBUS, &action, NULL) < 0 ? -errno : 0;
}

int sigbus_begin(void)
{
	pthread_once(&once, begin);
	return result;
}
