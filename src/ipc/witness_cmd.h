/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a witness is told. */
#ifndef WPFS_IPC_WITNESS_CMD_H
#define WPFS_IPC_WITNESS_CMD_H

#include "ipc/wire.h"

/*
 * Sends one command, with a descriptor if fd is not negative, through the socket that the witness
 * reads at its other end. Does not wait. Any thread. 0 or -errno.
 */
int witness_cmd_send(int chan, const struct wpfs_witness_cmd *cmd, int fd);

#endif
