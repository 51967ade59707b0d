/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reads just enough of ELF. It guesses nothing: what cannot be read or is no ELF file is left to
 * execve and its error.
 */
#include "ctl/exe.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fdio.h"

#define SCRIPT_DEPTH_MAX 5   /* as the kernel's */
#define HEAD_LEN	 256 /* BINPRM_BUF_SIZE */
#define PHDRS_MAX	 128

enum elf_link { ELF_NONE, ELF_STATIC, ELF_DYNAMIC };

struct elf_image {
	enum elf_link link; /* ELF_NONE: no ELF file, or not readable */
	unsigned char class;
	uint16_t machine;
	char interp[PATH_MAX]; /* the loader, when dynamic */
};

static bool is_executable(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISREG(st.st_mode) &&
	       faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) == 0;
}

int exe_find(const char *name, char *buf, size_t size)
{
	const char *dirs = getenv("PATH") ?: "/bin:/usr/bin";
	int err = -ENOENT;

	if (strchr(name, '/')) {
		if ((size_t)snprintf(buf, size, "%s", name) >= size)
			return -ENAMETOOLONG;
		if (is_executable(buf))
			return 0;
		return access(buf, F_OK) ? -errno : -EACCES;
	}
	if (!name[0])
		return -ENOENT;
	for (;;) {
		size_t len = strcspn(dirs, ":");

		/* an empty element is the current directory */
		if ((size_t)snprintf(buf, size, "%.*s%s%s", (int)len, dirs, len ? "/" : "./",
				     name) < size) {
			if (is_executable(buf))
				return 0;
			if (access(buf, F_OK) == 0)
				err = -EACCES;
		}
		if (!dirs[len])
			return err;
		dirs += len + 1;
	}
}

/* Both ELF classes have the same fields under other offsets. */
#define READ_PHDRS(bits)                                                                           \
	static int elf_read_##bits(int fd, struct elf_image *image)                                \
	{                                                                                          \
		Elf##bits##_Ehdr eh;                                                               \
		Elf##bits##_Phdr ph;                                                               \
		int r = fdio_pread_full(fd, &eh, sizeof(eh), 0);                                   \
                                                                                                   \
		if (r)                                                                             \
			return r;                                                                  \
		image->machine = eh.e_machine;                                                     \
		if ((eh.e_type != ET_EXEC && eh.e_type != ET_DYN) ||                               \
		    eh.e_phentsize != sizeof(ph) || eh.e_phnum > PHDRS_MAX)                        \
			return -ENOEXEC;                                                           \
		image->link = ELF_STATIC;                                                          \
		for (unsigned i = 0; i < eh.e_phnum; i++) {                                        \
			r = fdio_pread_full(fd, &ph, sizeof(ph),                                   \
					    (off_t)(eh.e_phoff + i * sizeof(ph)));                 \
			if (r)                                                                     \
				return r;                                                          \
			if (ph.p_type != PT_INTERP)                                                \
				continue;                                                          \
			if (ph.p_filesz == 0 || ph.p_filesz >= sizeof(image->interp))              \
				return -ENOEXEC;                                                   \
			image->link = ELF_DYNAMIC;                                                 \
			return fdio_pread_full(fd, image->interp, ph.p_filesz,                     \
					       (off_t)ph.p_offset);                                \
		}                                                                                  \
		return 0;                                                                          \
	}

READ_PHDRS(32)
READ_PHDRS(64)

static void elf_read(int fd, struct elf_image *image)
{
	unsigned char ident[EI_NIDENT];
	int r = -ENOEXEC;

	memset(image, 0, sizeof(*image));
	if (fdio_pread_full(fd, ident, sizeof(ident), 0) || memcmp(ident, ELFMAG, SELFMAG) != 0)
		return;
	image->class = ident[EI_CLASS];
	if (image->class == ELFCLASS64)
		r = elf_read_64(fd, image);
	else if (image->class == ELFCLASS32)
		r = elf_read_32(fd, image);
	if (r)
		image->link = ELF_NONE;
}

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

/*
 * Would the kernel set AT_SECURE? Then the loader ignores a preload that has a '/' in it. Set-id
 * bits and capabilities count only where they change something.
 */
static bool is_secure(int fd, const char **what)
{
	bool root = getuid() == 0;
	struct statvfs fs;
	struct stat st;

	if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 || fstat(fd, &st) ||
	    (fstatvfs(fd, &fs) == 0 && (fs.f_flag & ST_NOSUID)))
		return false;
	if ((st.st_mode & S_ISUID) && st.st_uid != getuid()) {
		*what = "is setuid";
		return true;
	}
	if ((st.st_mode & S_ISGID) && (st.st_mode & S_IXGRP) && st.st_gid != getgid()) {
		*what = "is setgid";
		return true;
	}
	if (!root && fgetxattr(fd, "security.capability", NULL, 0) > 0) {
		*what = "has file capabilities";
		return true;
	}
	return false;
}

static bool elf_takes_preload(int fd, const char *path, const struct elf_image *elf, char *why,
			      size_t size)
{
	_cleanup_close_ int self_fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	struct elf_image self;
	const char *secure;

	memset(&self, 0, sizeof(self));
	if (self_fd >= 0)
		elf_read(self_fd, &self);
	if (is_secure(fd, &secure)) {
		snprintf(why, size, "%s %s, and for such a program the loader ignores it", path,
			 secure);
		return false;
	}
	/* ld.so called by hand has no loader and is one */
	if (elf->link == ELF_STATIC && strcmp(base_name(path), base_name(self.interp)) != 0) {
		snprintf(why, size, "%s is statically linked", path);
		return false;
	}
	if (self.link != ELF_DYNAMIC)
		return true;
	if (elf->class != self.class || elf->machine != self.machine) {
		snprintf(why, size, "%s is a %s-bit program for %s machine", path,
			 elf->class == ELFCLASS32 ? "32" : "64",
			 elf->machine == self.machine ? "this" : "another");
		return false;
	}
	if (elf->link == ELF_DYNAMIC &&
	    strcmp(base_name(elf->interp), base_name(self.interp)) != 0) {
		snprintf(why, size, "%s is made for another C library (%s)", path, elf->interp);
		return false;
	}
	return true;
}

/*
 * Splits a "#!" line into interpreter and argument. What `env` would run is looked up, since that
 * is the program that counts; env with options is left as it is.
 */
static bool script_next(char *line, char *path, size_t size)
{
	char *save, *interp, *arg;

	line[strcspn(line, "\n")] = '\0';
	interp = strtok_r(line + 2, " \t", &save);
	if (!interp)
		return false;
	arg = strtok_r(NULL, " \t", &save);
	if (arg && strcmp(base_name(interp), "env") == 0 && arg[0] != '-' && !strchr(arg, '='))
		return exe_find(arg, path, size) == 0;
	return (size_t)snprintf(path, size, "%s", interp) < size;
}

bool exe_takes_preload(const char *program, char *why, size_t size)
{
	char path[PATH_MAX];

	if ((size_t)snprintf(path, sizeof(path), "%s", program) >= sizeof(path))
		return true;
	for (int depth = 0; depth < SCRIPT_DEPTH_MAX; depth++) {
		_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
		char head[HEAD_LEN + 1];
		struct elf_image elf;
		ssize_t n;

		if (fd < 0)
			return true;
		elf_read(fd, &elf);
		if (elf.link != ELF_NONE)
			return elf_takes_preload(fd, path, &elf, why, size);
		n = pread(fd, head, HEAD_LEN, 0);
		if (n < 2 || memcmp(head, "#!", 2) != 0)
			return true;
		head[n] = '\0';
		if (!script_next(head, path, sizeof(path)))
			return true;
	}
	return true;
}
