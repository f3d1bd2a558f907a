package grains

import (
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/fault"
	"drover/internal/rpm"
)

// families are Salt's names of distributions and their families, by the ID of os-release(5). What is
// not here keeps its NAME, and the family of the first ID_LIKE that is.
var families = map[string][2]string{
	"centos": {"CentOS", "RedHat"}, "rhel": {"RedHat", "RedHat"}, "almalinux": {"AlmaLinux", "RedHat"}, "rocky": {"Rocky", "RedHat"},
	"ol": {"OEL", "RedHat"}, "fedora": {"Fedora", "RedHat"}, "amzn": {"Amazon", "RedHat"}, "virtuozzo": {"Virtuozzo", "RedHat"}, "eurolinux": {"EuroLinux", "RedHat"},
	"debian": {"Debian", "Debian"}, "ubuntu": {"Ubuntu", "Debian"}, "raspbian": {"Raspbian", "Debian"}, "linuxmint": {"Mint", "Debian"},
	"sles": {"SUSE", "Suse"}, "opensuse-leap": {"openSUSE Leap", "Suse"}, "opensuse-tumbleweed": {"openSUSE Tumbleweed", "Suse"}, "suse": {"SUSE", "Suse"},
	"arch": {"Arch", "Arch"}, "alpine": {"Alpine", "Alpine"}, "gentoo": {"Gentoo", "Gentoo"},
}

func system(ctx context.Context, h *host, c Config, g map[string]any) error {
	var errs []error
	arch := h.line("proc/sys/kernel/arch")
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		errs = append(errs, fault.Unavailable("fact_uname", "the kernel does not tell its name").Wrap(err))
	} else if arch == "" {
		arch = unix.ByteSliceToString(u.Machine[:])
	}
	g["kernel"], g["cpuarch"] = "Linux", arch
	g["kernelrelease"], g["kernelversion"] = h.line("proc/sys/kernel/osrelease"), h.line("proc/sys/kernel/version")
	params := []any{}
	for _, w := range words(h.line("proc/cmdline")) {
		if k, v, ok := strings.Cut(w, "="); ok {
			params = append(params, []any{k, strings.Trim(v, `"`)})
		} else {
			params = append(params, []any{k, nil})
		}
	}
	g["kernelparams"] = params

	release := h.text("etc/os-release")
	if release == "" {
		release = h.text("usr/lib/os-release")
	}
	if release == "" {
		errs = append(errs, fault.NotFound("fact_os", "%s has no os-release, which tells its operating system", h.root).Fix("install the package that the distribution's release files are in"))
	} else {
		distribution(settings(release), h.line("etc/debian_version"), arch, g)
	}

	g["machine_id"] = h.line("etc/machine-id")
	g["init"] = h.init()
	if err := h.systemd(ctx, g); err != nil {
		errs = append(errs, err)
	}
	g["package_provider"] = ""
	for _, p := range []string{"dnf", "yum", "zypper", "apt"} {
		if h.program(p) {
			g["package_provider"] = p
			break
		}
	}
	g["transactional"] = h.program("transactional-update")
	g["locale_info"] = h.locale(c)
	return errors.Join(errs...)
}

// words splits a kernel command line; quotes keep spaces.
func words(s string) (out []string) {
	quoted, start := false, -1
	for i := 0; i <= len(s); i++ {
		end := i == len(s) || !quoted && (s[i] == ' ' || s[i] == '\t' || s[i] == '\n')
		switch {
		case end && start >= 0:
			out, start = append(out, s[start:i]), -1
		case end:
		default:
			if start < 0 {
				start = i
			}
			if s[i] == '"' {
				quoted = !quoted
			}
		}
	}
	return out
}

// distribution tells the operating system of an os-release file.
func distribution(r map[string]string, debian, arch string, g map[string]any) {
	id, full := r["ID"], r["NAME"]
	names, known := families[id]
	for _, like := range strings.Fields(r["ID_LIKE"]) {
		if known {
			break
		}
		if f, ok := families[like]; ok {
			names, known = [2]string{full, f[1]}, true
		}
	}
	if !known {
		names = [2]string{full, full}
	}
	if full == "CentOS Stream" {
		names[0] = full // has the ID of CentOS Linux
	}
	if full == "" {
		full = names[0]
	}
	version := r["VERSION_ID"]
	if version == "" && id == "debian" {
		version = debian
	}
	codename := r["VERSION_CODENAME"]
	if codename == "" {
		codename = r["PRETTY_NAME"]
	}
	g["os"], g["os_family"], g["osfullname"], g["oscodename"], g["osrelease"] = names[0], names[1], full, codename, version
	info := []any{}
	for part := range strings.SplitSeq(version, ".") {
		if n, ok := number(part); ok && strings.Trim(part, "0123456789") == "" {
			info = append(info, n)
		} else if part != "" {
			info = append(info, part)
		}
	}
	g["osrelease_info"] = info
	finger := full
	if names[0] == "Debian" || names[0] == "Raspbian" {
		finger = names[0]
	}
	if len(info) > 0 {
		if n, ok := info[0].(int64); ok {
			g["osmajorrelease"] = n
		}
		g["osfinger"] = fmt.Sprint(finger, "-", info[0])
		if names[0] == "Ubuntu" {
			g["osfinger"] = finger + "-" + version
		}
	}
	g["lsb_distrib_id"], g["lsb_distrib_release"], g["lsb_distrib_codename"], g["lsb_distrib_description"] = full, version, codename, r["PRETTY_NAME"]
	g["osarch"] = arch
	if names[1] == "Debian" {
		g["osarch"] = debianArch(arch)
	}
}

// debianArch is what dpkg calls a machine.
func debianArch(machine string) string {
	switch machine {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	case "i686", "i586", "i386":
		return "i386"
	case "armv7l":
		return "armhf"
	case "ppc64le":
		return "ppc64el"
	}
	return machine
}

// init is the program that started the host.
func (h *host) init() string {
	if h.exists("run/systemd/system") {
		return "systemd"
	}
	name, _, _ := strings.Cut(h.text("proc/1/cmdline"), "\x00")
	if name = path.Base(name); slices.Contains([]string{"systemd", "upstart", "runit", "supervisord", "tini", "dumb-init", "openrc-init"}, name) {
		return name
	}
	return "unknown"
}

// systemdLibrary is systemd's own library, which has the version in its name:
// libsystemd-shared-257-9.el10.so.
var systemdLibrary = regexp.MustCompile(`^libsystemd-shared-(\d+)[^/]*\.so$`)

// systemd tells its version by its library, and what it was built with by asking it, since that is
// written in no file.
func (h *host) systemd(ctx context.Context, g map[string]any) error {
	version := ""
	for _, dir := range []string{"usr/lib/systemd", "lib/systemd", "usr/lib64/systemd", "usr/lib/" + fmt.Sprint(g["cpuarch"]) + "-linux-gnu/systemd"} {
		for _, n := range h.names(dir) {
			if m := systemdLibrary.FindStringSubmatch(n); m != nil {
				version = m[1]
			}
		}
	}
	if version == "" {
		return nil
	}
	info := map[string]any{"version": version, "features": ""}
	g["systemd"] = info
	if h.root != "/" || g["init"] != "systemd" {
		return nil
	}
	features, err := systemdFeatures(ctx, systemBus)
	if err != nil {
		return err
	}
	info["features"] = features
	return nil
}

// locale is the language of the host, and what time it goes by.
func (h *host) locale(c Config) map[string]any {
	lang := settings(h.text("etc/locale.conf"))["LANG"]
	if lang == "" {
		lang = settings(h.text("etc/default/locale"))["LANG"]
	}
	language, encoding, _ := strings.Cut(lang, ".")
	out := map[string]any{"defaultlanguage": language, "defaultencoding": encoding, "detectedencoding": "utf-8", "timezone": "UTC"}
	if language == "" || language == "C" || language == "POSIX" {
		out["defaultlanguage"] = nil
	}
	if encoding == "" {
		out["defaultencoding"] = nil
	}
	if b := h.bytes("etc/localtime"); b != nil {
		if l, err := time.LoadLocationFromTZData("", b); err == nil { // what cannot be read counts as UTC, as it does in libc
			out["timezone"], _ = c.Now().In(l).Zone()
		}
	}
	return out
}

// security tells what protects the host, how it was booted, and whether it should be again.
func security(_ context.Context, h *host, c Config, g map[string]any) error {
	selinux := map[string]any{"enabled": false}
	switch h.line("sys/fs/selinux/enforce") {
	case "1":
		selinux = map[string]any{"enabled": true, "enforced": "Enforcing"}
	case "0":
		selinux = map[string]any{"enabled": true, "enforced": "Permissive"}
	}
	g["selinux"] = selinux
	g["fips_enabled"] = h.line("proc/sys/crypto/fips_enabled") == "1"
	policy := h.line("etc/crypto-policies/state/current")
	if policy == "" {
		for l := range strings.Lines(h.text("etc/crypto-policies/config")) {
			if l = strings.TrimSpace(l); l != "" && l[0] != '#' {
				policy = l
			}
		}
	}
	if policy != "" {
		g["crypto_policy"] = policy
	}
	g["efi"] = h.exists("sys/firmware/efi")
	g["efi-secure-boot"] = false
	for _, n := range []string{"sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", "sys/firmware/efi/vars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c/data"} {
		if b := h.bytes(n); len(b) > 0 {
			g["efi-secure-boot"] = b[len(b)-1] == 1 // attributes stand before the value
			break
		}
	}
	ostree := h.exists("run/ostree-booted")
	g["rpm_ostree"] = ostree
	g["bootc"] = ostree && h.program("bootc")
	for l := range strings.Lines(h.text("proc/stat")) {
		if v, ok := strings.CutPrefix(l, "btime "); ok {
			if n, ok := number(v); ok {
				g["boot_time"] = n
			}
		}
	}
	reason := h.rebootReason(fmt.Sprint(g["kernelrelease"]), g["virtual"] == "container")
	g["reboot_needed"] = reason != ""
	if reason != "" {
		g["reboot_reason"] = reason
	}
	return nil
}

// rebootReason says why the host should be booted, or nothing: a kernel of the running one's kind is
// newer, or a package asked for it.
func (h *host) rebootReason(running string, container bool) string {
	if container {
		return ""
	}
	for _, f := range []string{"run/reboot-required", "var/run/reboot-required"} {
		if h.exists(f) {
			return "/" + f + " asks for it"
		}
	}
	kind := func(release string) string { _, k, _ := strings.Cut(release, "+"); return k } // "debug", "rt", "64k"
	newest := running
	for _, n := range h.names("usr/lib/modules") {
		installed := h.exists(path.Join("usr/lib/modules", n, "vmlinuz")) || h.exists("boot/vmlinuz-"+n)
		if installed && kind(n) == kind(running) && rpm.CompareEVR(n, newest) > 0 {
			newest = n
		}
	}
	if newest != running && running != "" {
		return "the kernel " + newest + " is installed, " + running + " runs"
	}
	return ""
}
