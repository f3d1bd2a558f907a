package teststream

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"drover/internal/fault"
)

// Set is a set of packages that can be made.
type Set string

// The sets.
const (
	Build Set = "build" // a root in which rpmbuild works
	Boot  Set = "boot"  // Build's base with kernel, systemd, sshd and dnf
	All   Set = "all"   // both
)

var (
	base = []string{"bash", "coreutils", "libc-bin", "debianutils", "hostname", "login", "passwd", "ncurses-base", "ncurses-bin", "util-linux", "util-linux-extra", "mount",
		"sed", "grep", "gawk", "findutils", "diffutils", "tar", "gzip", "bzip2", "xz-utils", "tzdata"}
	forBuild = []string{"zstd", "patch", "make", "gcc", "g++", "libc6-dev", "binutils", "cpio", "rpm", "debugedit", "elfutils", "file", "unzip", "info", "pkgconf"}
	forBoot  = []string{"systemd", "systemd-sysv", "udev", "dbus", "kmod", "iproute2", "openssh-server", "openssh-client", "dnf", "python3", "rpm", "ca-certificates", "chrony", "curl", "less",
		"e2fsprogs", "procps", "libpam-systemd", "libnss-systemd", "gnupg", "gpg", "linux-image-cloud-amd64"}
)

func (s Set) seeds() ([]string, error) {
	switch s {
	case Build, "":
		return slices.Concat(base, forBuild), nil
	case Boot:
		return slices.Concat(base, forBoot), nil
	case All:
		return slices.Concat(base, forBuild, forBoot), nil
	}
	return nil, fault.Invalid("set", "%q is no set", s).Fix("use build, boot or all")
}

// download brings the Debian packages of a set into dir, resolved by apt against an empty
// system, and returns their files.
func download(ctx context.Context, set Set, dir string) ([]string, error) {
	seeds, err := set.seeds()
	if err != nil {
		return nil, err
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return nil, fault.Unavailable("apt_missing", "teststream is made from Debian's packages, and apt-get is not here").
			Fix("run it on Debian 12, or point drover at a mirror of CentOS Stream instead: drover mirror set")
	}
	if err := os.MkdirAll(filepath.Join(dir, "partial"), 0o755); err != nil {
		return nil, err
	}
	args := []string{"-o", "Dir::State::status=/dev/null", "-o", "Dir::Cache::archives=" + dir + "/", "-o", "APT::Install-Recommends=0", "-o", "Debug::NoLocking=1",
		"-o", "APT::Sandbox::User=root", "-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=", "-q", "-y", "install"}
	// What the plan names is what counts: dir may hold older versions from before.
	empty, err := os.MkdirTemp("", "drover-teststream-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(empty)
	if err := os.Mkdir(filepath.Join(empty, "partial"), 0o755); err != nil {
		return nil, err
	}
	plan := slices.Replace(slices.Clone(args), 3, 4, "Dir::Cache::archives="+empty+"/")
	out, err := apt(ctx, append(append(plan, "--print-uris"), seeds...)...)
	if err != nil {
		if _, uerr := apt(ctx, "-q", "update"); uerr != nil {
			return nil, uerr
		}
		if out, err = apt(ctx, append(append(plan, "--print-uris"), seeds...)...); err != nil {
			return nil, err
		}
	}
	var files []string
	missing := false
	for line := range strings.SplitSeq(out, "\n") {
		f := strings.Fields(line)
		if len(f) < 3 || !strings.HasPrefix(f[0], "'") {
			continue
		}
		p := filepath.Join(dir, f[1])
		files = append(files, p)
		if _, err := os.Stat(p); err != nil {
			missing = true
		}
	}
	if len(files) == 0 {
		return nil, fault.Unavailable("apt_plan", "apt named no packages to download").Fix("run apt-get update, and look at its sources")
	}
	if missing {
		if _, err := apt(ctx, append(append(args, "--download-only"), seeds...)...); err != nil {
			return nil, err
		}
	}
	slices.Sort(files)
	return files, nil
}

func apt(ctx context.Context, args ...string) (string, error) {
	c := exec.CommandContext(ctx, "apt-get", args...)
	c.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var errs bytes.Buffer
	c.Stderr = &errs
	out, err := c.Output()
	if err != nil {
		return "", fault.Unavailable("apt", "apt-get failed: %s", strings.TrimSpace(errs.String())).Wrap(err).Fix("run apt-get update as root, and look at its sources")
	}
	return string(out), nil
}
