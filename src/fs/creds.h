/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whose rights a FUSE thread uses. It is root with all but CAP_SYS_RESOURCE (which would lift a
 * tmpfs quota). For a creation it takes the caller's fsuid, fsgid and umask, so that owner, group,
 * set-group-id directories and default ACLs come out as the kernel makes them, and keeps
 * CAP_DAC_OVERRIDE, because the permission check was made by the FUSE side already.
 *
 * All of it is per thread: raw system calls where the C library would change every thread.
 */
#ifndef WPFS_FS_CREDS_H
#define WPFS_FS_CREDS_H

#include <stdbool.h>
#include <sys/stat.h>
#include <sys/types.h>

/* Who asks. `pid` is a thread id in our pid namespace, 0 when it has none here. */
struct creds_caller {
	uid_t uid;
	gid_t gid;
	pid_t pid;
	mode_t umask;
};

/*
 * In the thread that starts the FUSE threads, which inherit it. `fsetid`: with CAP_FSETID, for a
 * mount where they move contents; else it is there only where it is asked for below. 0 or -errno.
 */
int creds_setup(bool fsetid);

/*
 * Becomes the caller until creds_restore. With `exact`, its supplementary groups and its
 * CAP_FSETID too (two reads of /proc): needed where the kernel decides whether a set-group-id bit
 * stays. 0 or -errno. creds_restore follows either way, and does nothing when there was no become.
 * The umask is the caller's until the next become.
 */
int creds_become(const struct creds_caller *caller, bool exact);
void creds_restore(void);

/* To make a file with that mode, of which a set-group-id bit is to stay: not `exact`. */
int creds_become_maker(const struct creds_caller *caller, mode_t mode);

/*
 * Before a call that changes the contents of the file `st` describes: like creds_become with
 * `exact` if that could clear a suid or sgid bit, else nothing. creds_restore follows either way.
 */
int creds_become_writer(const struct creds_caller *caller, const struct stat *st);

/*
 * Without CAP_FSETID the kernel clears suid and sgid bits at a write or truncate, and a
 * set-group-id bit where a mode is set. Both until creds_back_fsetid, or creds_restore; in a FUSE
 * thread.
 */
void creds_drop_fsetid(void);
void creds_take_fsetid(void);
void creds_back_fsetid(void);

/* The same in a thread of any kind, until creds_return_fsetid. True: this one lacked it. */
bool creds_borrow_fsetid(void);
void creds_return_fsetid(void);

/* Whether thread `pid` has capability `cap` in our user namespace; false when it is gone. */
bool creds_caller_capable(pid_t pid, int cap);

#endif
