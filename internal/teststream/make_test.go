package teststream

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// host runs dnf or rpm as on any host: with a private HOME that tells rpm where a root's
// database is.
func host(t *testing.T, args ...string) string {
	t.Helper()
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, ".rpmmacros"), []byte("%_dbpath /var/lib/rpm\n%__gpg /usr/bin/gpg\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), args[0], args[1:]...)
	c.Env = append(os.Environ(), "HOME="+home, "LC_ALL=C.UTF-8")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestBuildSetInstalls(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "stream")
	res, err := Make(t.Context(), Config{Dir: dir, Set: Build, Say: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	if res.Packages < 100 {
		t.Fatalf("%d packages", res.Packages)
	}
	root := filepath.Join(t.TempDir(), "root")
	install := strings.Fields("bash bzip2 coreutils cpio diffutils findutils gawk glibc-minimal-langpack grep gzip info patch redhat-rpm-config rpm-build sed shadow-utils system-release tar unzip util-linux which xz gcc gcc-c++ make")
	out := host(t, append([]string{"dnf", "-y", "--installroot=" + root, "--releasever=9", "--setopt=reposdir=/nonexistent", "--setopt=varsdir=/nonexistent", "--setopt=cachedir=" + t.TempDir(), "--setopt=module_platform_id=platform:el9",
		"--setopt=install_weak_deps=0", "--setopt=tsflags=nodocs", "--nogpgcheck", "--disableplugin=*", "--repofrompath=stream,file://" + dir, "install"}, install...)...)
	if !strings.Contains(out, "Complete!") {
		t.Errorf("dnf: %s", out)
	}
	if v := host(t, "rpm", "--root="+root, "-Va"); v != "" {
		t.Errorf("rpm -Va: %s", v)
	}
}
