/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A seam for tests, nothing without WPFS_TEST_DIR in the daemon's environment: a directory whose
 * files say what is to fail and where to stop. The daemon looks for them each time, so a test can
 * change its mind.
 *
 *   fail-NAME    that step fails; the file holds the errno as a number, or errno and N: then it is
 *                done N times more, fails once, and the file is removed
 *   pause-NAME   whoever comes to that step writes "at" into it and waits until just this file is
 *                gone; a number N in it: those N that come before do not
 *   slow-NAME    that step takes 5 ms more
 *
 * Steps of an eviction: recorded (in the file that outlives the daemon), fenced, leased, saved
 * (written), spilled (said so in the bits, and the lock is held), punched, unfenced; fencing,
 * unfencing (after each mapping); again (a page table cannot be changed before an event is read);
 * looked (a page is in memory, and not read yet).
 *
 * Of a request: coming (a drop, before it waits for others), dropped (the file is cut, and nothing
 * said so yet), reading (its pages are there); sure (of the mappings that madvise(2) is about to
 * take pages out of), removed (they are).
 *
 * Of a refault: asked (nothing read), read, filled (in the lower file, its bit still set). Of a
 * fault thread: message (before one is read). Of the track thread: looking (for files of which
 * nothing is known, and not at all names yet).
 *
 * Of a userfaultfd that is registered, on any mount: rearming, rearmed (what it had marked in an
 * earlier run); a step that can fail: disarm (what of that was stored to).
 *
 * Steps that can fail: bits (of a file), record, lower-read, spill-open, spill-write, punch;
 * spill-read, lower-write, lower-short (half of the pages are in the lower file then); and each
 * piece of I/O to the store: io-write, io-read.
 */
#ifndef WPFS_TRACK_CAPPED_TEST_H
#define WPFS_TRACK_CAPPED_TEST_H

/* Once, before the first of the others. */
void capped_test_init(void);

/* 0, or the -errno that this step is to fail with. */
int capped_test_fail(const char *step);

/* But for "spilled" no lock is held that a fault, a request or the track thread needs. */
void capped_test_point(const char *step);

#endif
