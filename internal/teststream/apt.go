package teststream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/durable"
	"drover/internal/fault"
)

// Set is a set of packages that can be made.
type Set string

// The sets.
const (
	Base  Set = "base"  // a root with a shell and the usual tools
	Build Set = "build" // a root in which rpmbuild works
	Boot  Set = "boot"  // a machine: kernel, systemd, sshd and dnf
	All   Set = "all"   // all of them
)

// The packages that are asked for by name; apt adds what they need. Debian takes the first
// ones for granted, apt does so only on a system that has them.
const (
	baseSeeds = `bash coreutils libc-bin debianutils hostname login passwd ncurses-base ncurses-bin util-linux util-linux-extra mount sed grep gawk
		findutils diffutils tar gzip bzip2 xz-utils tzdata`
	buildSeeds = `zstd patch make gcc g++ libc6-dev binutils cpio rpm debugedit elfutils file unzip info pkgconf`
	bootSeeds  = `systemd systemd-sysv udev dbus kmod iproute2 openssh-server openssh-client dnf python3 rpm ca-certificates chrony curl less sudo
		e2fsprogs procps iputils-ping vim-tiny libpam-systemd libnss-systemd libnss-myhostname gnupg gpg linux-image-cloud-amd64 dracut
		systemd-boot systemd-boot-efi xfsprogs dosfstools`
)

func (s Set) seeds() ([]string, error) {
	switch s {
	case Base:
		return strings.Fields(baseSeeds), nil
	case Build:
		return strings.Fields(baseSeeds + " " + buildSeeds), nil
	case Boot:
		return strings.Fields(baseSeeds + " " + bootSeeds), nil
	case All:
		return strings.Fields(baseSeeds + " " + buildSeeds + " " + bootSeeds), nil
	}
	return nil, fault.Invalid("set", "%q is no set of packages", s).Fix("use base, build, boot or all")
}

// source is a .deb file as Debian's signed lists describe it.
type source struct {
	uri  string
	file string // its name: bash_5.2.15-2+b13_amd64.deb
	size int64
	sum  string // hex sha256
}

func (s source) name() string {
	n, _, _ := strings.Cut(s.file, "_")
	return n
}

// apt runs apt-get on lists and sources of its own, so that nothing depends on, or changes,
// what the machine has installed, and no right is needed.
type apt struct {
	dir  string   // lists and sources
	lock *os.File // of the cache; a child that outlives us keeps it
}

// listAge is how old lists may get. Packages that they name stay on the mirror for longer.
const listAge = 24 * time.Hour

// prepare brings lists of Debian 12 that are not older than age. When the mirror cannot be
// reached, older ones do.
func (a apt) prepare(ctx context.Context, age time.Duration, say func(string, ...any)) error {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fault.Unavailable("apt_missing", "teststream is made from Debian's packages, and there is no apt-get here").
			Fix("install apt (on CentOS Stream from EPEL), or let drover copy a mirror of CentOS Stream instead: drover mirror set NAME URL")
	}
	for _, d := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return durable.Full(a.dir, err)
		}
	}
	want, err := a.mirrors(ctx)
	if err != nil {
		return err
	}
	list, stamp := filepath.Join(a.dir, "sources.list"), filepath.Join(a.dir, "updated")
	have, err := os.ReadFile(list)
	if same := err == nil && string(have) == want; same {
		if info, err := os.Stat(stamp); err == nil && time.Since(info.ModTime()) < age {
			return nil
		}
	} else if err := errors.Join(os.RemoveAll(stamp), os.WriteFile(list, []byte(want), 0o644)); err != nil {
		return durable.Full(a.dir, err)
	}
	say("asking Debian's mirror what there is")
	if err := room(a.dir, 64<<20); err != nil {
		return err
	}
	if _, err := a.run(ctx, "apt-get", "update"); err != nil {
		if info, serr := os.Stat(stamp); serr == nil && ctx.Err() == nil {
			say("the mirror does not answer; going on with its lists of %s", info.ModTime().Format(time.DateTime))
			return nil
		}
		return err
	}
	return durable.WriteFile(stamp, nil, 0o644)
}

// room refuses to begin what the file system has no space for: apt-get may hang on a full one.
func room(dir string, need int64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < need {
		return durable.Full(dir, fmt.Errorf("%d MiB are needed and %d MiB are free: %w", need>>20, free>>20, unix.ENOSPC))
	}
	return nil
}

// mirrors is the sources.list of Debian 12: from where the machine itself takes it, or else
// from Debian.
func (a apt) mirrors(ctx context.Context) (string, error) {
	c := exec.CommandContext(ctx, "apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages")
	out, err := c.Output()
	if err != nil && ctx.Err() != nil {
		return "", ctx.Err()
	}
	return sourcesList(string(out)), nil // the machine's own sources may be broken: they need not be used
}

// sourcesList makes a sources.list of lines "URI suite component", as apt-get indextargets
// gives them.
func sourcesList(targets string) string {
	uris := map[string]string{}
	for l := range strings.Lines(targets) {
		f := strings.Fields(l)
		if len(f) == 3 && f[2] == "main" && uris[f[1]] == "" {
			uris[f[1]] = f[0]
		}
	}
	if uris["bookworm"] == "" {
		uris = map[string]string{"bookworm": "http://deb.debian.org/debian/", "bookworm-updates": "http://deb.debian.org/debian/", "bookworm-security": "http://deb.debian.org/debian-security/"}
	}
	signed := "/usr/share/keyrings/debian-archive-keyring.gpg"
	var b strings.Builder
	for _, suite := range []string{"bookworm", "bookworm-updates", "bookworm-security"} {
		if uris[suite] != "" {
			b.WriteString("deb [arch=amd64 target=Packages signed-by=" + signed + "] " + uris[suite] + " " + suite + " main\n")
		}
	}
	return b.String()
}

// plan resolves a set against an empty system.
func (a apt) plan(ctx context.Context, set Set) ([]source, error) {
	seeds, err := set.seeds()
	if err != nil {
		return nil, err
	}
	out, err := a.run(ctx, "apt-get", append([]string{"install", "--print-uris", "-y"}, seeds...)...)
	if err != nil {
		return nil, err
	}
	return parsePlan(out)
}

// parsePlan reads what apt-get --print-uris says: 'URI' file size SHA256:sum.
func parsePlan(out string) ([]source, error) {
	var plan []source
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) != 4 || !strings.HasPrefix(f[0], "'") {
			continue
		}
		size, err := strconv.ParseInt(f[2], 10, 64)
		sum, ok := strings.CutPrefix(f[3], "SHA256:")
		if err != nil || !ok || f[1] != filepath.Base(f[1]) {
			return nil, fault.Internal("apt_plan", "apt-get describes a package in an unknown way: %q", line)
		}
		plan = append(plan, source{uri: strings.Trim(f[0], "'"), file: f[1], size: size, sum: sum})
	}
	if len(plan) == 0 {
		return nil, fault.Unavailable("apt_plan", "apt-get names no packages to download").Fix("remove the folder apt of the cache and try again")
	}
	slices.SortFunc(plan, func(a, b source) int { return strings.Compare(a.file, b.file) })
	return plan, nil
}

// download brings debs into dir. apt checks their sums.
func (a apt) download(ctx context.Context, debs []source, dir string) error {
	args := []string{"download-file"}
	for _, d := range debs {
		args = append(args, d.uri, filepath.Join(dir, d.file), "SHA256:"+d.sum)
	}
	helper := "/usr/lib/apt/apt-helper"
	if _, err := os.Stat(helper); err != nil {
		helper = "/usr/libexec/apt/apt-helper" // where Fedora and EPEL have it
	}
	_, err := a.run(ctx, helper, args...)
	return err
}

func (a apt) run(ctx context.Context, tool string, args ...string) (string, error) {
	var opts []string
	for _, o := range []string{"Dir::State::status=/dev/null", "Dir::State::lists=" + a.dir + "/lists", "Dir::State::extended_states=/dev/null", "Dir::Etc::sourcelist=" + a.dir + "/sources.list",
		"Dir::Etc::sourceparts=/dev/null", "Dir::Etc::preferences=/dev/null", "Dir::Etc::preferencesparts=/dev/null", "Dir::Cache::archives=" + a.dir + "/archives", "Dir::Cache::pkgcache=" + a.dir + "/pkgcache.bin",
		"Dir::Cache::srcpkgcache=" + a.dir + "/srcpkgcache.bin", "APT::Architecture=amd64", "APT::Architectures=amd64", "APT::Default-Release=", "APT::Install-Recommends=0", "APT::Install-Suggests=0", "APT::Sandbox::User=",
		"APT::Update::Error-Mode=any", "Acquire::Languages=none", "Acquire::ForceHash=sha256", "Acquire::Retries=2", "Debug::NoLocking=1", "Dpkg::Use-Pty=0"} {
		opts = append(opts, "-o", o)
	}
	c := exec.CommandContext(ctx, tool, append(append(opts, "-q"), args...)...)
	c.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	if a.lock != nil {
		c.ExtraFiles = []*os.File{a.lock}
	}
	var errs bytes.Buffer
	c.Stderr = &errs
	out, err := c.Output()
	switch text := strings.TrimSpace(errs.String()); {
	case err == nil:
		return string(out), nil
	case ctx.Err() != nil:
		return "", ctx.Err()
	case strings.Contains(text, "No space left on device"):
		return "", durable.Full(a.dir, unix.ENOSPC)
	default:
		return "", fault.Unavailable("apt", "%s failed: %.2000s", filepath.Base(tool), text).Wrap(err).
			Fix("see whether this machine reaches Debian's mirror; apt's own proxy settings hold here too")
	}
}
